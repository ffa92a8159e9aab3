"""The whole solve of a cell in one launch: csrc/cpu/tile.h for a tile of rows of a GPU program.

A program owns R lanes and iterates their rows together. A row that is done is written out and leaves its lane to the
program's next waiting row; which rows a program gets is fixed, so nothing is counted across programs. What a lane
computes depends on its own row only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .anderson import Rings, all_finite, available, mixed_step, mixing_weights, store_gram, tile_sums
from .stopping import (
    DIVERGED,
    NONFINITE,
    RUNNING,
    Choice,
    Progress,
    decide,
    fresh_choice,
    fresh_progress,
    judge,
    relative_residual,
)

# Vectors of a lane's scratch before its rings: the state, the left factor of a product, the best iterate.
STATE, FACTOR, BEST, FIRST_RING = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


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
def _row_of(sequence, rows, R: tl.constexpr):
    """The program's sequence-th row: programs take turns of R rows."""
    turn = sequence // R * tl.num_programs(0) + tl.program_id(0)
    return (turn * R + sequence % R).to(tl.int64)


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
    vectors,  # float32 scratch [programs, R, FIRST_RING + 2 * SLOTS, C]
    grams,  # float64 scratch [programs, R, SLOTS, SLOTS]
    options,
    batch,
    dim,
    method,
    tile,
    EPS: tl.constexpr,  # rounding unit of the dtype that is solved in
):
    R: tl.constexpr = tile.R
    C: tl.constexpr = tile.C
    SLOTS: tl.constexpr = method.SLOTS
    lane = tl.arange(0, R)
    cols = tl.arange(0, C)
    place = (tl.program_id(0) * R + lane).to(tl.int64)
    vector = vectors + place * ((FIRST_RING + 2 * SLOTS) * C)
    gram = grams + place * (SLOTS * SLOTS)
    rings = Rings(vector + FIRST_RING * C, vector + (FIRST_RING + SLOTS) * C, C)
    best_at = (vector + BEST * C)[:, None] + cols[None, :]
    real = cols[None, :] < dim

    nothing = tl.zeros((R,), tl.float64)
    everywhere = lane >= 0
    index = _row_of(lane, batch, R)
    live = index < batch
    taken = lane + 0  # sequence number of the lane's row
    waiting = tl.full((), R, tl.int32)  # sequence number of the next row
    p = fresh_progress(Progress(nothing, nothing, nothing, nothing, nothing), everywhere)
    c = fresh_choice(Choice(nothing, nothing, nothing, nothing, nothing, nothing), everywhere)
    count = nothing
    start = (z0 + index * dim)[:, None] + cols[None, :]
    state_at = (vector + STATE * C)[:, None] + cols[None, :]
    tl.store(state_at, tl.load(start, mask=live[:, None] & real, other=0.0).to(tl.float32))
    tl.debug_barrier()

    while tl.max(live.to(tl.int32)) > 0:
        mask = live[:, None] & real
        rows = Rows(index, live, vector + STATE * C, vector + FACTOR * C, cols, mask, dim)
        f = tl.where(mask, evaluate(cell, rows, tile), 0.0)
        z = tl.load(state_at, mask=mask, other=0.0)
        differences = available(p.steps + 1, count, SLOTS)
        sums = tile_sums(z, f, rings, p.steps + 1, differences, live, options.damping, cols, mask, SLOTS)
        r2 = sums[0]
        f2 = sums[1]
        p, status, is_best = judge(p, r2, f2, options, EPS)
        is_best = is_best & live
        ended = live & (status != RUNNING)
        if result.trace is not None:
            at = result.trace + (p.steps - 1).to(tl.int64) * batch + index
            tl.store(at, relative_residual(r2, f2), mask=live)

        following = z + options.damping * (f - z)
        if SLOTS > 0:
            c, mixes = decide(c, p.steps, r2, r2 - sums[3], dim, method.AUTO, True)
            mixes = mixes & live & (ended == 0)
            count = tl.where(mixes, differences, 0.0)
            if tl.max(mixes.to(tl.int32)) > 0:
                weights, used = mixing_weights(sums, gram, p.steps, count, mixes, options.ridge, SLOTS)
                store_gram(sums, gram, p.steps, count, mixes, SLOTS)
                mixed = mixed_step(following, rings, p.steps, weights, used, cols, mask, SLOTS)
                accepted = (used > 0) & all_finite(mixed, vectors, mask)
                following = tl.where(accepted[:, None], mixed, following)
                count = tl.where(accepted, count, 0.0)
        tl.debug_barrier()  # the state has been read by all

        tl.store(best_at, z, mask=is_best[:, None])
        if tl.max(ended.to(tl.int32)) > 0:
            _write(rows, result, p, status, r2, f2, z, is_best, best_at, ended, method)
            taken = tl.where(ended, waiting + tl.cumsum(ended.to(tl.int32), 0) - 1, taken)
            waiting += tl.sum(ended.to(tl.int32))
            index = _row_of(taken, batch, R)
            live = live & (index < batch)
            start = (z0 + index * dim)[:, None] + cols[None, :]
            entering = (ended & live)[:, None]
            fresh = tl.load(start, mask=entering & real, other=0.0).to(tl.float32)
            following = tl.where(entering, fresh, following)
            p = fresh_progress(p, ended)
            c = fresh_choice(c, ended)
            count = tl.where(ended, 0.0, count)
        tl.store(state_at, following, mask=live[:, None])
        tl.debug_barrier()
