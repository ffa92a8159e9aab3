"""Operator `residual_norm`: the relative residual |f(z) - z| / |f(z)| of each problem.

With g = f - z: d(|g| / |f|) = <g, dg> / (|g| |f|) - |g| <f, df> / |f|^3, which is what the derivative below applies;
where |g| = 0 it takes the subgradient 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..options import check_int
from ._declare import _LIBRARIES

SCHEMA = "residual_norm(Tensor z, Tensor fz, int batch_ndim=1) -> Tensor"


def _result_dtype(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _fake(z: Tensor, fz: Tensor, batch_ndim: int = 1) -> Tensor:
    return z.new_empty(z.shape[:batch_ndim], dtype=_result_dtype(z))


def _reference(z: Tensor, fz: Tensor, batch_ndim: int = 1) -> Tensor:
    wide = torch.float32 if z.device.type == "mps" else torch.float64
    problems = (*z.shape[:batch_ndim], z.shape[batch_ndim:].numel())
    f = fz.to(wide).reshape(problems)
    g = f - z.to(wide).reshape(problems)
    r, size = torch.linalg.vector_norm(g, dim=-1), torch.linalg.vector_norm(f, dim=-1)
    return torch.where(r == 0, 0.0, r / size).to(_result_dtype(z))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.batch_ndim = inputs[2]


def _backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None]:
    z, fz = ctx.saved_tensors
    dtype = _result_dtype(z)
    state = tuple(range(ctx.batch_ndim, z.dim()))
    f = fz.to(dtype)
    g = f - z.to(dtype)
    v = v.reshape(v.shape + (1,) * len(state))
    r2 = g.square().sum(state, keepdim=True) if state else g.square()
    f2 = f.square().sum(state, keepdim=True) if state else f.square()
    moves = r2 > 0
    r = torch.where(moves, r2, 1.0).sqrt()
    size = torch.where(f2 > 0, f2, 1.0).sqrt()
    along = torch.where(moves, v * g / (r * size), 0.0)
    grad_f = along - torch.where(moves, v * r / size**3, 0.0) * f
    return -along.to(z.dtype), grad_f.to(z.dtype), None


for _library in _LIBRARIES:
    _name = f"{_library.ns}::residual_norm"
    _library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(_name, _fake, lib=_library)
    torch.library.register_autograd(_name, _backward, setup_context=_save, lib=_library)
    _library.impl("residual_norm", _reference, "CompositeExplicitAutograd")


def residual_norm(z: Tensor, fz: Tensor, batch_ndim: int = 1) -> Tensor:
    """|f(z) - z| / |f(z)| of each problem, L2 over its state; 0 where f(z) = z.

    Args:
        z: [*batch, *state].
        fz: f(z), in z's shape, dtype and device.
        batch_ndim: leading dimensions that index problems. Default 1.

    Returns:
        [*batch], float32 (float64 for float64 states). Differentiable, twice.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.

    >>> residual_norm(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([0.8000])
    """
    for name, tensor in (("z", z), ("fz", fz)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if fz.shape != z.shape:
        raise ValueError(f"fz must have z's shape {list(z.shape)}, got {list(fz.shape)}")
    if fz.dtype != z.dtype:
        raise TypeError(f"fz must have z's dtype {z.dtype}, got {fz.dtype}")
    if fz.device != z.device:
        raise ValueError(f"fz must be on z's device {z.device}, got {fz.device}")
    check_int("batch_ndim", batch_ndim, low=0, high=z.dim())
    return torch.ops.attractor_kernels.residual_norm(z, fz, batch_ndim)
