"""A bound affine cell to its CPU kernel past torch's dispatcher, which takes longer to call one than a small solve."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..info import SolveInfo
from ..ops._arguments import Tail
from .bound import BoundCell

try:
    from .. import _direct
except ImportError:  # no compiled parts: nothing comes here
    _direct = None  # type: ignore[assignment]

_PLAIN = (Tensor, nn.Parameter)
_BYTE = torch.uint8
_DOUBLE = {torch.float32: False, torch.float64: True}


def run_directly(bound: BoundCell, z0: Tensor, tail: Tail) -> tuple[Tensor, SolveInfo] | None:
    """What the operator `solve_affine` returns for z0 [B, D], without gradients; None where the call is one that the
    dispatcher has to see, or the tensors do not lie as the kernel reads them.
    """
    if bound.name != "solve_affine" or tail.trace or _somebody_watches():
        return None
    double = _DOUBLE.get(z0.dtype)
    u, weight, leak, scale = bound.held
    if double is None or scale is not None or not (_plain(z0) and _plain(u) and type(weight) in _PLAIN):
        return None
    rows, dim = z0.shape
    if weight.shape != (dim, dim) or weight.dtype is not z0.dtype or not weight.is_cpu:
        return None
    leak_at = 0
    if leak is not None:
        if not _plain(leak) or leak.shape != (dim,) or leak.dtype is not z0.dtype:
            return None
        leak_at = leak.data_ptr()
    output_stride, input_stride = weight.stride()
    activation, pieces = bound.constants
    z = torch.empty_like(z0)
    packed = torch.empty(9 * rows, dtype=_BYTE)
    at = packed.data_ptr()
    _direct.solve_affine(
        tail,
        double,
        rows,
        dim,
        z0.data_ptr(),
        u.data_ptr(),
        weight.data_ptr(),
        output_stride,
        input_stride,
        leak_at,
        0,
        activation,
        pieces,
        z.data_ptr(),
        at,
        at + 4 * rows,
        at + 8 * rows,
    )
    return z, SolveInfo.of_packed(packed, "cpu")


def _plain(t: Tensor) -> bool:
    return type(t) in _PLAIN and t.is_cpu and t.is_contiguous()


def _somebody_watches() -> bool:
    """Whether modes of torch, a profiler or a tracer are to see every operator that is called."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state()
        or torch._C._autograd._profiler_enabled()
    )
