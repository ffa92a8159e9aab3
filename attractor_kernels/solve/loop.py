"""The loop for maps the package does not know: f, then one fused step, until no problem runs.

Two buffers hold the iterates in turn. An iterate that f kept a reference to (a list of its own, a view, an autograd
graph) is never overwritten: it gets a new buffer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import registry
from ..backends.triton import Sizes
from ..info import SolveInfo
from ..ops.anderson_step import StepBuffers, step_buffers
from . import stop_flag
from .maps import Map
from .spec import Spec

# How many hold a tensor's data, and the tensor itself; both are torch's own, so their absence is survived.
_storage_uses: Callable[[int], int] = getattr(torch._C, "_storage_Use_Count", lambda _: 0)
_tensor_uses: Callable[[Tensor], int] = getattr(Tensor, "_use_count", lambda _: 0)


def loop_backend(z0: Tensor, spec: Spec) -> str:
    """The backend that takes the steps of an unknown map: one with a kernel for the fused step, or "reference".

    Raises ValueError where a backend asked for by name cannot.
    """
    if spec.tail is None:
        return "reference"
    if not torch.compiler.is_compiling():
        plain = type(z0) is Tensor or type(z0) is torch.nn.Parameter
        if not plain or torch._C._functorch.maybe_current_level() is not None:
            return "reference"
    sizes = None
    if z0.device.type == "cuda":
        entries = z0.shape[spec.mixing_ndim :].numel()
        sizes = Sizes(entries, history=spec.tail.history if spec.tail.solver else 0)
    return registry.backend_for("anderson_step", spec.backend, z0.device, z0.dtype, sizes)


def run_loop(f: Map, z0: Tensor, spec: Spec, backend: str, *, all_steps: bool = False) -> tuple[Tensor, SolveInfo]:
    """Solves z = f(z), without gradients, for a map that returns states like its argument; z0 [*batch, *state].

    all_steps: take max_steps steps whatever becomes of the problems, without reading anything back.
    """
    assert spec.tail is not None
    shape = z0.shape
    batch = shape[: spec.batch_ndim]
    problems, groups = batch.numel(), shape[spec.batch_ndim : spec.mixing_ndim].numel()
    z = z0.detach().clone(memory_format=torch.contiguous_format)
    tail = spec.tail
    buffers = step_buffers(z, problems, groups, spec.solver, max_steps=tail.max_steps, trace=tail.trace)
    if problems:
        z = (_run_all_steps if all_steps else _run)(f, z, buffers, spec, backend)
    info = SolveInfo(buffers.steps, buffers.residual, buffers.status, buffers.trace, backend, batch)
    return z, info


class Iterate:
    """A buffer for iterates, and how many hold on to it."""

    __slots__ = ("_storage", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._storage = tensor.untyped_storage()._cdata

    def holders(self) -> tuple[int, int, int]:
        return sys.getrefcount(self.tensor), _tensor_uses(self.tensor), _storage_uses(self._storage)


def _run(f: Map, z0: Tensor, buffers: StepBuffers, spec: Spec, backend: str) -> Tensor:
    step, rest = bind_step(buffers, spec, backend)
    running = stop_flag.reader(buffers.active)
    z, out = Iterate(z0), Iterate(buffers.out)
    left = spec.max_steps
    with torch.no_grad():
        while True:
            holders = z.holders()
            fz: Tensor | None = f(z.tensor)
            assert fz is not None
            step(z.tensor, fz if fz.is_contiguous() else fz.contiguous(), out.tensor, *rest)
            left -= 1
            if not left or not running():
                return out.tensor
            fz = None  # it may be z itself, which is no reason to give z up
            if z.holders() != holders:
                z = Iterate(z.tensor.clone())
            z, out = out, z


def _run_all_steps(f: Map, z: Tensor, buffers: StepBuffers, spec: Spec, backend: str) -> Tensor:
    """The number of steps does not depend on data: problems that have ended stand still to the last."""
    step, rest = bind_step(buffers, spec, backend)
    out = buffers.out
    with torch.no_grad():
        for _ in range(spec.max_steps):
            step(z, f(z).contiguous(), out, *rest)
            z, out = out, z
    return z


def bind_step(buffers: StepBuffers, spec: Spec, backend: str) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """The operator, and all its arguments but z, f(z) and out."""
    tail = spec.tail
    assert tail is not None
    options = (tail.solver, tail.damping, tail.ridge, tail.rtol, tail.atol, tail.max_steps, tail.min_steps)
    operators = torch.ops.attractor_kernels_triton if backend == "triton" else torch.ops.attractor_kernels
    return operators.anderson_step.default, (*buffers[1:], *options, tail.keep_best)
