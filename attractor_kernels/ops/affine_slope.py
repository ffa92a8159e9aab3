"""Operator `affine_slope`: what the adjoint of an affine solve begins with, in one pass over its pre-activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.reference.activations import derivative
from ._declare import _LIBRARIES

SCHEMA = "affine_slope(Tensor a, Tensor v, Tensor? scale, int activation, int pieces) -> (Tensor, Tensor)"


def _fake(a: Tensor, v: Tensor, scale: Tensor | None, activation: int, pieces: int) -> tuple[Tensor, Tensor]:
    d = torch.empty_like(a, memory_format=torch.contiguous_format)
    return d, torch.empty_like(d)


def _reference(a: Tensor, v: Tensor, scale: Tensor | None, activation: int, pieces: int) -> tuple[Tensor, Tensor]:
    d = derivative(activation, a, pieces)
    if scale is not None:
        d = scale * d
    return d, d * v


def _backward(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("affine_slope has no derivative")


_overloads: dict[str, Any] = {}  # by namespace
for _library in _LIBRARIES:
    _name = f"{_library.ns}::affine_slope"
    _library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(_name, _fake, lib=_library)
    torch.library.register_autograd(_name, _backward, lib=_library)
    _library.impl("affine_slope", _reference, "CompositeExplicitAutograd")
    _overloads[_library.ns] = getattr(torch.ops, _library.ns).affine_slope.default


def affine_slope(
    namespace: str, a: Tensor, v: Tensor, scale: Tensor | None, activation: int, pieces: int
) -> tuple[Tensor, Tensor]:
    """d = scale * phi'(a) and d * v, all [B, D]; not differentiable."""
    slope: tuple[Tensor, Tensor]
    with torch._C._AutoDispatchBelowAutograd():  # the wrapper above it costs more than a small one
        slope = _overloads[namespace](a, v, scale, activation, pieces)
    return slope
