"""The products of precision="mixed": csrc/cuda/mixed_product.h for the rows of a program.

A row keeps products a = z W^T and the z that they stand for. Most evaluations add W d to them for the change d of z,
rounded to bfloat16, some (mixed_precision.py) take the product in full. What rounding leaves of d stays in the next d.

A product in full costs a program as much for one row as for all. So rows that are due for one wait until they are at
least half as many as those that go on without; what a row computes does not depend on when.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .mixed_precision import CHANGES, FULL, NOTHING
from .products import product

# The interpreter multiplies bfloat16 numbers as the integers it keeps them in, and cuts off where it should round.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
_OPERAND = tl.constexpr(tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16)


class Kept(NamedTuple):
    """What rows keep of their products; pointers [R]."""

    change: Any  # d, bfloat16 [C]
    stands_for: Any  # float32 [C]
    products: Any  # float32, [C] for each product of z


@triton.jit
def kept_at(change, vectors, C: tl.constexpr):
    """change, vectors: scratch of C float32 entries, and of as many as planning.KEPT says."""
    return Kept(change.to(tl.pointer_type(tl.bfloat16), bitcast=True), vectors, vectors + C)


@triton.jit
def whose_turn(due, live):
    """The rows that work in this round, and those of them whose product is in full."""
    full = live & (due == FULL)
    others = live & (due != FULL)
    full = full & (2 * tl.sum(full.to(tl.int32)) >= tl.sum(others.to(tl.int32)))
    return others | full, full


@triton.jit
def _rounded(x):
    """x in bfloat16."""
    if _INTERPRETED:
        x = (x.to(tl.int32, bitcast=True) + 0x8000).to(tl.float32, bitcast=True)
    return x.to(tl.bfloat16)


@triton.jit
def keep_change(kept, z, due, where, cols, tile):
    """Before an evaluation at z [R, C]: its change, and what the products will stand for.

    Of a start at zero the products are known; a product of no change brings them in, so that they see weights that
    are not finite as a product in full would.
    """
    changed = where & (due == CHANGES)
    at = kept.stands_for[:, None] + cols[None, :]
    last = tl.load(at, mask=changed[:, None], other=0.0)
    change = _rounded(tl.where(changed[:, None], z - last, 0.0))
    tl.debug_barrier()  # the last has been read by all
    tl.store(kept.change[:, None] + cols[None, :], change, mask=where[:, None])
    tl.store(at, tl.where(changed[:, None], last + change.to(tl.float32), z), mask=where[:, None])
    known = where & (due == NOTHING)
    if tl.max(known.to(tl.int32)) > 0:
        zero = tl.zeros((tile.R, tile.C), tl.float32)
        for which in tl.static_range(tile.KEPT - 1):
            tl.store((kept.products + which * tile.C)[:, None] + cols[None, :], zero, mask=known[:, None])


@triton.jit
def kept_product(rows, which, weight, output_stride, input_stride, narrow, tile):
    """z W^T for the rows at work, the which-th of the products that they keep; narrow: W in bfloat16, contiguous."""
    cols, dim = rows.cols, rows.dim
    changed = rows.live & (rows.full == 0)
    at = (rows.kept.products + which * tile.C)[:, None] + cols[None, :]
    zero = tl.zeros((tile.R, tile.C), tl.float32)
    if tl.max(rows.full.to(tl.int32)) > 0:
        full = product(zero, rows.state, weight, output_stride, input_stride, cols, dim, dim, tile)
        tl.store(at, full, mask=rows.full[:, None])
        tl.debug_barrier()
    a = zero
    if tl.max(changed.to(tl.int32)) > 0:
        a = product(a, rows.kept.change, narrow, dim, 1, cols, dim, dim, tile, _OPERAND)
        a = tl.where(changed[:, None], a, 0.0)
    a += tl.load(at, mask=rows.live[:, None], other=0.0)  # last: one rounding of the sum a step, whatever the size
    tl.debug_barrier()  # the sums have been read by all
    tl.store(at, a, mask=changed[:, None])
    return a


@triton.jit
def state_product(total, rows, which, weight, output_stride, input_stride, narrow, tile):
    """total + z W^T, the which-th of the products that rows keep where they keep any."""
    if tile.KEPT > 0:
        total += kept_product(rows, which, weight, output_stride, input_stride, narrow, tile)
    else:
        cols, dim = rows.cols, rows.dim
        total = product(total, rows.state, weight, output_stride, input_stride, cols, dim, dim, tile)
    return total
