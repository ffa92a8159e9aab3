"""An operator on a device, the same in float64 on the CPU, and what may lie between the two."""

from __future__ import annotations

import pytest
import torch
from kernels import BATCHED, REFERENCE, Case
from torch import Tensor

from attractor_kernels.backends import registry, triton
from attractor_kernels.ops._declare import SolveResult, Tail
from attractor_kernels.solve.run import namespace_of

PICARD, ANDERSON, AUTO = range(3)
SOLVERS = {"picard": PICARD, "anderson": ANDERSON, "auto": AUTO}
# Relative error of a state solved to RTOL against the fixed point: RTOL over one less the contraction, and for the
# halves, which are solved in float32, the rounding of the result.
RTOL = 1e-5
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(CLOSE)
# States and hidden units, odd ones; for mixed precision large enough that every kernel takes products of changes.
SIZES = {False: (33, 21), True: (101, 131)}


def tail(solver: int, **options) -> Tail:
    chosen = dict(history=5, damping=1.0, ridge=1e-8, rtol=RTOL, atol=0.0, max_steps=200, min_steps=0)
    return Tail(solver=solver, **(chosen | dict(keep_best=False, trace=False, mixed=False) | options))


def need(backend: str, op: str, device: torch.device, dtype: torch.dtype, *sizes: int) -> None:
    """Skips where the backend says that it has no kernel for such a call. sizes: as in `triton.Sizes`."""
    try:
        registry.backend_for(op, backend, device, dtype, triton.Sizes(*sizes))
    except ValueError as error:
        pytest.skip(str(error))


def need_for(backend: str, case: Case, device: torch.device, dtype: torch.dtype, options: Tail) -> None:
    dim = case.tensors[0].shape[1]
    hidden = next((t.shape[1] for t in case.tensors[4:7] if case.op.startswith("solve_mlp") and is_w2(t, dim)), 0)
    need(backend, case.op, device, dtype, dim, hidden, options.history if options.solver else 0)


def is_w2(t: Tensor | None, dim: int) -> bool:
    return t is not None and t.dim() == 2 and t.shape[0] == dim and t.shape[1] != dim


def on(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    return [None if t is None else t.to(device, dtype) for t in case.tensors]


def rows_of(case: Case, tensors: list[Tensor | None], rows: slice | Tensor) -> list[Tensor | None]:
    own = BATCHED[case.op]
    return [t[rows].contiguous() if t is not None and i in own else t for i, t in enumerate(tensors)]


def solve(backend: str, case: Case, tensors: list[Tensor | None], options: Tail) -> SolveResult:
    operator = getattr(getattr(torch.ops, namespace_of(backend)), case.op)
    return SolveResult(*operator(*tensors, *case.constants, *options))


def fixed_point(case: Case, dtype: torch.dtype) -> SolveResult:
    """In float64 on the CPU, of the tensors as the dtype rounds them."""
    tensors = [None if t is None else t.to(dtype).double() for t in case.tensors]
    operator = getattr(REFERENCE, case.op)
    return SolveResult(*operator(*tensors, *case.constants, *tail(ANDERSON, rtol=1e-11, max_steps=2000)))


def relative(a: Tensor, b: Tensor) -> float:
    a, b = (t.detach().cpu().double() for t in (a, b))
    return float((a - b).norm() / b.norm())


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def all_same(a: SolveResult, b: SolveResult, rows: slice | Tensor = slice(None)) -> bool:
    """Bitwise, all but the traces; rows: of b."""
    return all(same_bits(x, y[rows]) for x, y in zip(a[:4], b[:4], strict=True))
