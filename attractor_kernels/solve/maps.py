"""The maps that loops solve: f with its values checked, and those whose solves can be recognised when they come again.

A map that comes again says what its values depend on besides z: a module, with all the module's state, and tensors,
its inputs. `at` gives the same map with other tensors in the place of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Map = Callable[[Tensor], Tensor]


class CheckedMap:
    """f, with an error that says so where it returns anything but a state like its argument."""

    __slots__ = ("f",)

    def __init__(self, f: Map) -> None:
        if not callable(f):
            raise TypeError(f"f must be a callable z -> f(z) or a bound cell, got {f!r}")
        self.f = f

    def __call__(self, z: Tensor) -> Tensor:
        counted = not (torch.compiler.is_compiling() or z.is_inference())
        version = z._version if counted else 0
        fz: Any = self.f(z)
        if not isinstance(fz, Tensor):
            raise TypeError(f"f must return a Tensor, got {type(fz).__name__}")
        if fz.shape != z.shape:
            raise ValueError(f"f must return z's shape {list(z.shape)}, got {list(fz.shape)}")
        if fz.dtype != z.dtype:
            raise TypeError(f"f must return z's dtype {z.dtype}, got {fz.dtype}; cast what f returns, or z0")
        if fz.device != z.device:
            raise ValueError(f"f must return a tensor on z's device {z.device}, got {fz.device}")
        if counted and z._version != version:
            raise ValueError("f must not modify z in place")
        return fz


class ModuleMap:
    """z -> module(z, x).

    Attributes:
        obstacle: why its solves cannot be recorded; None if they can; set by whoever finds out.
        situation: of its last solve without gradients: the torch settings and the module's state it depends on.
    """

    __slots__ = ("inputs", "module", "obstacle", "situation")

    def __init__(self, module: nn.Module, x: Tensor, obstacle: str | None = None) -> None:
        self.module = module
        self.inputs = (x,)
        self.obstacle = obstacle
        self.situation: tuple[Any, ...] | None = None

    def __call__(self, z: Tensor) -> Tensor:
        return self.module(z, *self.inputs)

    def at(self, inputs: tuple[Tensor, ...]) -> Map:
        module = self.module
        return CheckedMap(lambda z: module(z, *inputs))


class AdjointMap:
    """w -> J^T w + v, with J = df/dz at the tensor `leaf` behind fz = f(leaf)."""

    __slots__ = ("f", "fz", "leaf", "v")

    def __init__(self, f: Map, leaf: Tensor, fz: Tensor, v: Tensor) -> None:
        self.f, self.leaf, self.fz, self.v = f, leaf, fz, v

    def __call__(self, w: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self.fz, self.leaf, w, retain_graph=True, allow_unused=True)
        return self.v if product is None else product + self.v

    @property
    def forward(self) -> ModuleMap | None:
        """The module behind f, if there is one."""
        inner = unchecked(self.f)
        return inner if isinstance(inner, ModuleMap) else None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        forward = self.forward
        assert forward is not None
        return (self.leaf, self.v, *forward.inputs)

    def at(self, inputs: tuple[Tensor, ...]) -> Map:
        forward = self.forward
        assert forward is not None
        z, v, *others = inputs
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            fz = forward.at(tuple(others))(leaf)
        return AdjointMap(self.f, leaf, fz, v)


def unchecked(f: Map) -> Map:
    return f.f if isinstance(f, CheckedMap) else f
