"""The whole solve of a cell in one launch: csrc/cpu/tile.h for a tile of rows of a GPU program.

A program owns R lanes and iterates their rows together. A row that is done is written out and leaves its lane to the
program's next waiting row; which rows a program gets is fixed, so nothing is counted across programs. What a lane
computes depends on its own row only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .anderson import (
    Rings,
    all_finite,
    available,
    mixed_step,
    newest,
    store_gram_row,
    tile_sums,
)
from .planning import CONTROL_COLUMNS
from .planning import FIRST_RING as _FIRST_RING
from .small_solve import System, solve_small
from .stopping import (
    DIVERGED,
    NONFINITE,
    RUNNING,
    STEPS,
    decide,
    judge,
    load_choice,
    load_progress,
    relative_residual,
    store_choice,
    store_progress,
)

# Vectors of a lane's scratch before its rings: the state, the left factor of a product, the best iterate.
STATE, FACTOR, BEST, FIRST_RING = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(_FIRST_RING)

_GROUP = tl.constexpr(CONTROL_COLUMNS)


class Tile(NamedTuple):
    """Compile-time sizes: rows, columns (state, padded), inputs per product slice, hidden units per slice."""

    R: Any
    C: Any
    K: Any
    H: Any
    PRECISION: Any


class Rows(NamedTuple):
    """A tile of rows as a cell's map sees it."""

    index: Any  # int64 [R]: which row of the batch
    live: Any  # bool [R]: whether it is one
    state: Any  # pointers [R] to z, float32 [C], zero past dim
    factor: Any  # pointers [R] to as much scratch
    cols: Any  # [C]
    mask: Any  # bool [R, C]
    dim: Any


class Result(NamedTuple):
    z: Any  # [B, D]
    steps: Any  # int32 [B]
    residual: Any  # float32 [B]
    status: Any  # uint8 [B]
    trace: Any  # float32 [max_steps, B] or None


class Method(NamedTuple):
    """Compile-time choices of the solver."""

    SLOTS: Any  # of the rings; 0: Picard
    AUTO: Any
    KEEP_BEST: Any


@triton.jit
def row_constants(pointer, rows, width, offset):
    """Entries offset + cols of each row of a [B, width] tensor, float32 [R, C]."""
    at = (pointer + rows.index * width + offset)[:, None] + rows.cols[None, :]
    return tl.load(at, mask=rows.mask, other=0.0).to(tl.float32)


@triton.jit
def column_constants(pointer, rows):
    """A [D] tensor, float32 [1, C]."""
    return tl.load(pointer + rows.cols, mask=rows.cols < rows.dim, other=0.0).to(tl.float32)[None, :]


@triton.jit
def state_of(rows, live):
    return tl.load(rows.state[:, None] + rows.cols[None, :], mask=live[:, None], other=0.0)


@triton.jit
def _row_of(sequence, R: tl.constexpr):
    """The program's sequence-th row: programs take turns of R rows."""
    turn = sequence // R * tl.num_programs(0) + tl.program_id(0)
    return (turn * R + sequence % R).to(tl.int64)


@triton.jit
def _start(z0, index, dim, cols, mask):
    return tl.load((z0 + index * dim)[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _settle(row, group, sums_at, live, dim, numbers, method, EPS: tl.constexpr):
    """From a step's sums, how each row stands, and the weights of its next iterate into the group's columns.

    Returns [R] each: the progress, |g|^2, |f|^2, the status, whether the iterate is the best so far, the differences
    that are valid.
    """
    SLOTS: tl.constexpr = method.SLOTS
    before = load_progress(row, live)
    r2 = tl.load(sums_at, mask=live, other=0.0)
    f2 = tl.load(sums_at + 1, mask=live, other=0.0)
    p, status, is_best = judge(before, r2, f2, numbers, EPS)
    goes_on = live & (status == RUNNING)
    count = r2 * 0
    if SLOTS > 0:
        choice = load_choice(row, live & (before.steps > 0))
        along = r2 - tl.load(sums_at + 3, mask=live, other=0.0)
        choice, mixes = decide(choice, p.steps, r2, along, dim, method.AUTO, True)
        count = tl.where(mixes & goes_on, available(p.steps, group, live, SLOTS), 0.0)
        system = System(sums_at, group + 1 + SLOTS, p.steps)
        used = solve_small(system, count, numbers.ridge, group + 1, SLOTS)
        tl.debug_barrier()  # the old columns have been read by all
        tl.store(group + SLOTS, used, mask=live)
        store_choice(row, choice, goes_on)
        store_gram_row(sums_at, group, p.steps, count, SLOTS)
    else:
        tl.debug_barrier()
    store_progress(row, p, goes_on)
    return p, r2, f2, status, is_best & live, count


@triton.jit
def _write(rows, result, p, status, r2, f2, z, is_best, best_at, ended, method):
    """The results of the rows that ended."""
    failed = (status == DIVERGED) | (status == NONFINITE)
    use_best = ended & (p.best_f2 >= 0)
    if not method.KEEP_BEST:
        use_best = use_best & failed
    from_best = (use_best & (is_best == 0))[:, None]  # the best iterate is not this one
    value = tl.where(from_best, tl.load(best_at, mask=from_best & rows.mask, other=0.0), z)
    out = (result.z + rows.index * rows.dim)[:, None] + rows.cols[None, :]
    tl.store(out, value.to(result.z.dtype.element_ty), mask=ended[:, None] & rows.mask)
    residual = tl.where(use_best, relative_residual(p.best_r2, p.best_f2), relative_residual(r2, f2))
    tl.store(result.steps + rows.index, tl.where(use_best, p.best_step, p.steps).to(tl.int32), mask=ended)
    tl.store(result.residual + rows.index, residual, mask=ended)
    tl.store(result.status + rows.index, status.to(tl.uint8), mask=ended)


@triton.jit
def solve(
    evaluate: tl.constexpr,  # (cell, rows, tile) -> f(z) [R, C]
    cell,  # its operands
    z0,  # [B, D]
    result,
    vectors,  # float32 scratch [programs, R, scratch_vectors(SLOTS), C]
    control,  # float64 scratch [programs, R, COLUMNS]
    numbers,
    batch,
    dim,
    method,
    tile,
    COLUMNS: tl.constexpr,
    EPS: tl.constexpr,  # rounding unit of the dtype that is solved in
):
    R: tl.constexpr = tile.R
    C: tl.constexpr = tile.C
    SLOTS: tl.constexpr = method.SLOTS
    lane = tl.arange(0, R)
    cols = tl.arange(0, C)
    place = (tl.program_id(0) * R + lane).to(tl.int64)
    vector = vectors + place * ((FIRST_RING + 2 * SLOTS) * C)
    rings = Rings(vector + FIRST_RING * C, vector + (FIRST_RING + SLOTS) * C, C)
    state_at = (vector + STATE * C)[:, None] + cols[None, :]
    best_at = (vector + BEST * C)[:, None] + cols[None, :]
    row = control + place * COLUMNS
    group = row + _GROUP
    sums_at = group + 1 + SLOTS + SLOTS * SLOTS
    real = cols[None, :] < dim

    index = _row_of(lane, R)
    live = index < batch
    taken = lane + 0  # sequence number of the lane's row
    waiting = tl.full((), R, tl.int32)  # sequence number of the next row
    tl.store(state_at, _start(z0, index, dim, cols, live[:, None] & real))
    tl.store(row + STEPS, tl.zeros((R,), tl.float64))
    tl.debug_barrier()

    while tl.max(live.to(tl.int32)) > 0:
        mask = live[:, None] & real
        rows = Rows(index, live, vector + STATE * C, vector + FACTOR * C, cols, mask, dim)
        f = tl.where(mask, evaluate(cell, rows, tile), 0.0)
        z = tl.load(state_at, mask=mask, other=0.0)
        steps = tl.load(row + STEPS, mask=live, other=0.0) + 1
        differences = available(steps, group, live, SLOTS)
        tile_sums(sums_at, z, f, rings, steps, differences, live, numbers.damping, cols, mask, SLOTS)
        following = z + numbers.damping * (f - z)
        tl.debug_barrier()

        p, r2, f2, status, is_best, count = _settle(row, group, sums_at, live, dim, numbers, method, EPS)
        ended = live & (status != RUNNING)
        z = tl.load(state_at, mask=mask, other=0.0)  # again: registers are dearer
        if SLOTS > 0:
            following = newest(rings.h, p.steps, rings.stride, cols, mask, SLOTS)
            tl.debug_barrier()
            mixed, used = mixed_step(following, rings, group, p.steps, live, cols, mask, SLOTS)
            accepted = (used > 0) & all_finite(mixed, vectors, mask)
            following = tl.where(accepted[:, None], mixed, following)
            tl.store(group, tl.where(accepted, count, 0.0), mask=live)
        if result.trace is not None:
            at = result.trace + (p.steps - 1).to(tl.int64) * batch + index
            tl.store(at, relative_residual(r2, f2), mask=live)
        tl.store(best_at, z, mask=is_best[:, None])
        tl.debug_barrier()  # the state has been read by all
        if tl.max(ended.to(tl.int32)) > 0:
            _write(rows, result, p, status, r2, f2, z, is_best, best_at, ended, method)
            taken = tl.where(ended, waiting + tl.cumsum(ended.to(tl.int32), 0) - 1, taken)
            waiting += tl.sum(ended.to(tl.int32))
            index = _row_of(taken, R)
            live = live & (index < batch)
            entering = (ended & live)[:, None]
            following = tl.where(entering, _start(z0, index, dim, cols, entering & real), following)
        tl.store(row + STEPS, tl.where(ended, 0.0, p.steps))
        tl.store(state_at, following, mask=live[:, None])
        tl.debug_barrier()
