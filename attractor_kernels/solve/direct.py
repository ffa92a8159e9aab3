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

_KINDS = (Tensor, nn.Parameter)
_BYTE = torch.uint8
_DOUBLE = {torch.float32: False, torch.float64: True}


def _ordinary_keys() -> frozenset[int]:
    """The dispatch keys of dense CPU tensors that are what their memory says: not negated, zero by name, or wrapped."""
    with torch.inference_mode(False):
        keys = [torch._C._dispatch_keys(torch.empty(0))]
    with torch.inference_mode():
        keys.append(torch._C._dispatch_keys(torch.empty(0)))
    return frozenset(k.raw_repr() for k in keys)


_ORDINARY_KEYS = _ordinary_keys()


def run_directly(bound: BoundCell, z0: Tensor, tail: Tail) -> tuple[Tensor, SolveInfo] | None:
    """What the operator `solve_affine` returns for z0 [B, D], without gradients; None where the call is one that the
    dispatcher has to see, or the tensors do not lie as the kernel reads them.
    """
    if _direct is None or bound.name != "solve_affine" or tail.trace or _somebody_watches():
        return None
    dtype = z0.dtype
    double = _DOUBLE.get(dtype)
    u, weight, leak, scale = bound.held
    if double is None or scale is not None:
        return None
    rows, dim = shape = z0.shape
    if not (_lies_plain(z0, shape, dtype) and _lies_plain(u, shape, dtype) and _is_plain(weight, (dim, dim), dtype)):
        return None
    leak_at = 0
    if leak is not None:
        if not _lies_plain(leak, (dim,), dtype):
            return None
        leak_at = leak.data_ptr()
    output_stride, input_stride = weight.stride()
    activation, pieces = bound.constants
    z = torch.empty(shape, dtype=dtype)
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


def _is_plain(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return (
        type(t) in _KINDS
        and t.dtype is dtype
        and t.shape == shape
        and torch._C._dispatch_keys(t).raw_repr() in _ORDINARY_KEYS
    )


def _lies_plain(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return _is_plain(t, shape, dtype) and t.is_contiguous()


def _somebody_watches() -> bool:
    """Whether modes of torch, a profiler or a tracer are to see every operator that is called.

    An ExecutionTraceObserver without a profiler cannot be told from none.
    """
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state()
        or torch._C._autograd._profiler_enabled()
    )
