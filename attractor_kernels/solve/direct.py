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
    if double is None or not (_is_ordinary(z0) and z0.is_contiguous()):
        return None
    rows, dim = shape = z0.shape
    if not (_lies_plain(u, shape, dtype) and _fits(weight, (dim, dim), dtype)):
        return None
    if not (leak is None or _lies_plain(leak, (dim,), dtype)) or not (
        scale is None or _lies_plain(scale, shape, dtype)
    ):
        return None
    output_stride, input_stride = weight.stride()
    activation, pieces = bound.constants
    z = torch.empty_like(z0, memory_format=torch.contiguous_format)  # half the price of torch.empty(shape, ...)
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
        0 if leak is None else leak.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        activation,
        pieces,
        z.data_ptr(),
        at,
        at + 4 * rows,
        at + 8 * rows,
    )
    return z, SolveInfo.of_packed(packed, "cpu")


def _is_ordinary(t: Tensor) -> bool:
    return type(t) in _KINDS and torch._C._dispatch_keys(t).raw_repr() in _ORDINARY_KEYS


def _fits(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return t.dtype is dtype and t.shape == shape and _is_ordinary(t)


def _lies_plain(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return _fits(t, shape, dtype) and t.is_contiguous()


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
