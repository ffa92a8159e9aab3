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
    leave_out,
    mixed_step,
    newest,
    store_gram_row,
    tile_sums,
)
from .changes import keep_change, kept_at, whose_turn
from .mixed_precision import (
    CHANGES,
    FULL,
    Verdict,
    first_due,
    full_is_due,
    hold,
    load_due,
    load_held,
    load_precision,
    next_converges,
    observe,
    store_due,
    store_precision,
)
from .planning import CONTROL_COLUMNS, PRECISION_COLUMNS
from .planning import FIRST_RING as _FIRST_RING
from .small_solve import System, solve_small
from .stopping import (
    DIVERGED,
    NONFINITE,
    RUNNING,
    STEPS,
    accelerates,
    decide,
    judge,
    load_choice,
    load_progress,
    relative_residual,
    store_choice,
    store_previous_r2,
    store_progress,
)

# Vectors of a lane's scratch before its rings: the state, the left factor of a product, the best iterate.
STATE, FACTOR, BEST, FIRST_RING = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(_FIRST_RING)

_GROUP = tl.constexpr(CONTROL_COLUMNS)
_PRECISION = tl.constexpr(PRECISION_COLUMNS)


class Tile(NamedTuple):
    """Compile-time sizes: rows, columns (state, padded), inputs per product slice, hidden units per slice."""

    R: Any
    C: Any
    K: Any
    H: Any
    PRECISION: Any
    KEPT: Any  # vectors that a row keeps for products of its changes (changes.py); 0: all products are in full


class Rows(NamedTuple):
    """A tile of rows as a cell's map sees it."""

    index: Any  # int64 [R]: which row of the batch
    live: Any  # bool [R]: whether it is one, and is evaluated in this round
    state: Any  # pointers [R] to z, float32 [C], zero past dim
    factor: Any  # pointers [R] to as much scratch
    cols: Any  # [C]
    mask: Any  # bool [R, C]
    dim: Any
    full: Any = None  # bool [R]: of the rows evaluated, those whose product is in full, where not all are
    kept: Any = None  # changes.Kept


class Control(NamedTuple):
    """Where the numbers of each lane lie; pointers [R] to float64."""

    row: Any  # as stopping.py has them
    precision: Any  # as mixed_precision.py has them
    group: Any  # valid differences, weights by age and how many are used, the Gram matrix
    sums: Any  # inner products of a step


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
def _accelerates(choice, live, method):
    """Where a problem mixes as a rule."""
    if method.SLOTS == 0:
        result = live & (live == 0)
    elif method.AUTO:
        result = accelerates(choice.mode)
    else:
        result = live
    return result


@triton.jit
def _settle(at, live, dim, numbers, method, tile, EPS: tl.constexpr):
    """From a step's sums, how each row stands, and the weights of its next iterate into the group's columns.

    Returns the Verdict and the differences that are valid [R]. What is remembered goes to memory before the small
    systems are solved, which need the registers.
    """
    SLOTS: tl.constexpr = method.SLOTS
    MIXED: tl.constexpr = tile.KEPT > 0
    before = load_progress(at.row, live)
    choice_before = load_choice(at.row, live & (before.steps > 0))
    r2 = tl.load(at.sums, mask=live, other=0.0)
    f2 = tl.load(at.sums + 1, mask=live, other=0.0)
    p, status, is_best = judge(before, r2, f2, numbers, EPS)
    never = live & (live == 0)  # not None, which Triton 3.6 cannot return
    verdict = Verdict(p, status, is_best, never, never, never)
    ring_steps = p.steps
    moves = live
    if MIXED:
        m = load_precision(at.precision, live & (before.steps > 0))
        full = load_due(at.precision, live) != CHANGES
        ring_steps = p.steps - m.held
        observed = observe(m, full, r2, f2, _accelerates(choice_before, live, method))
        m, verdict = hold(m, observed, full, before, p, status, is_best, r2, f2)
        moves = live & ((verdict.held | verdict.retreats) == 0)
    goes_on = live & (verdict.status == RUNNING)
    moves = moves & goes_on
    choice = choice_before
    count = r2 * 0
    if SLOTS > 0:
        along = r2 - tl.load(at.sums + 3, mask=live, other=0.0)
        choice, mixes = decide(choice_before, ring_steps, r2, along, dim, method.AUTO, True)
        count = tl.where(mixes & moves, available(ring_steps, at.group, live, SLOTS), 0.0)
    tl.debug_barrier()  # the old columns have been read by all
    tl.store(at.row + STEPS, verdict.progress.steps, mask=live)
    store_progress(at.row, verdict.progress, live)
    if SLOTS > 0:
        store_choice(at.row, choice, moves)
    if MIXED:
        if SLOTS == 0:
            store_previous_r2(at.row, r2, moves)
        # Picard steps contract evenly, so the one that will end the row is known beforehand.
        last = (_accelerates(choice, live, method) == 0) & next_converges(r2, choice_before.previous_r2, f2, numbers)
        due = full_is_due(m, verdict.held, last, p.steps, numbers.max_steps)
        store_due(at.precision, tl.where(due, FULL, CHANGES).to(tl.float64), goes_on)
        store_precision(at.precision, m, goes_on)
        leave_out(at.sums, m.apart, live, SLOTS)
        tl.debug_barrier()
    if SLOTS > 0:
        system = System(at.sums, at.group + 1 + SLOTS, ring_steps)
        used = solve_small(system, count, numbers.ridge, at.group + 1, SLOTS)
        tl.debug_barrier()  # the old columns of the group have been read by all
        tl.store(at.group + SLOTS, used, mask=live)
        store_gram_row(at.sums, at.group, ring_steps, count, SLOTS)
    return verdict, count


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
def _stay(following, z, best_at, verdict, is_best, works):
    """The next iterate, where a row stays at z to have its end confirmed or goes back to its best iterate instead."""
    back = (works & verdict.retreats & (is_best == 0))[:, None]
    stays = (verdict.held | verdict.retreats)[:, None]
    return tl.where(stays, tl.where(back, tl.load(best_at, mask=back, other=0.0), z), following)


@triton.jit
def solve(
    evaluate: tl.constexpr,  # (cell, rows, tile) -> f(z) [R, C]
    cell,  # its operands
    z0,  # [B, D]
    result,
    vectors,  # float32 scratch [programs, R, scratch_vectors(SLOTS, KEPT), C]
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
    MIXED: tl.constexpr = tile.KEPT > 0
    lane = tl.arange(0, R)
    cols = tl.arange(0, C)
    place = (tl.program_id(0) * R + lane).to(tl.int64)
    vector = vectors + place * ((FIRST_RING + 2 * SLOTS + tile.KEPT) * C)
    rings = Rings(vector + FIRST_RING * C, vector + (FIRST_RING + SLOTS) * C, C)
    kept = kept_at(vector + FACTOR * C, vector + (FIRST_RING + 2 * SLOTS) * C, C)
    state_at = (vector + STATE * C)[:, None] + cols[None, :]
    best_at = (vector + BEST * C)[:, None] + cols[None, :]
    row = control + place * COLUMNS
    group = row + _GROUP
    at = Control(row, row + (COLUMNS - _PRECISION), group, group + 1 + SLOTS + SLOTS * SLOTS)
    real = cols[None, :] < dim

    index = _row_of(lane, R)
    live = index < batch
    taken = lane + 0  # sequence number of the lane's row
    waiting = tl.full((), R, tl.int32)  # sequence number of the next row
    start = _start(z0, index, dim, cols, live[:, None] & real)
    tl.store(state_at, start)
    if MIXED:
        due = first_due(start)
        store_due(at.precision, due, live)
        keep_change(kept, start, due, live, cols, tile)
    tl.store(row + STEPS, tl.zeros((R,), tl.float64))
    tl.debug_barrier()

    while tl.max(live.to(tl.int32)) > 0:
        works = live
        full = live
        if MIXED:
            works, full = whose_turn(load_due(at.precision, live), live)
        mask = works[:, None] & real
        rows = Rows(index, works, vector + STATE * C, vector + FACTOR * C, cols, mask, dim, full, kept)
        f = tl.where(mask, evaluate(cell, rows, tile), 0.0)
        z = tl.load(state_at, mask=mask, other=0.0)
        steps = tl.load(row + STEPS, mask=works, other=0.0) + 1
        ring_steps = steps
        if MIXED:
            ring_steps = steps - load_held(at.precision, works & (steps > 1))
        differences = available(ring_steps, group, works, SLOTS)
        tile_sums(at.sums, z, f, rings, ring_steps, differences, works, numbers.damping, cols, mask, SLOTS)
        following = z + numbers.damping * (f - z)
        tl.debug_barrier()

        verdict, count = _settle(at, works, dim, numbers, method, tile, EPS)
        ended = works & (verdict.status != RUNNING)
        is_best = works & verdict.is_best
        z = tl.load(state_at, mask=mask, other=0.0)  # again: registers are dearer
        if SLOTS > 0:
            following = newest(rings.h, ring_steps, rings.stride, cols, mask, SLOTS)
            tl.debug_barrier()
            mixed, used = mixed_step(following, rings, group, ring_steps, works, cols, mask, SLOTS)
            accepted = (used > 0) & all_finite(mixed, vectors, mask)
            following = tl.where(accepted[:, None], mixed, following)
            keeps = works
            if MIXED:
                keeps = works & (verdict.held == 0)
            tl.store(group, tl.where(accepted, count, 0.0), mask=keeps)
        r2 = tl.load(at.sums, mask=works, other=0.0)
        f2 = tl.load(at.sums + 1, mask=works, other=0.0)
        if result.trace is not None:
            traced = works
            if MIXED:
                traced = works & (verdict.closes == 0)
            trace_at = result.trace + (steps - 1).to(tl.int64) * batch + index
            tl.store(trace_at, relative_residual(r2, f2), mask=traced)
        tl.store(best_at, z, mask=is_best[:, None])
        tl.debug_barrier()  # the state has been read by all
        if MIXED:
            following = _stay(following, z, best_at, verdict, is_best, works)
        if tl.max(ended.to(tl.int32)) > 0:
            p = load_progress(row, works)
            _write(rows, result, p, verdict.status, r2, f2, z, is_best, best_at, ended, method)
            taken = tl.where(ended, waiting + tl.cumsum(ended.to(tl.int32), 0) - 1, taken)
            waiting += tl.sum(ended.to(tl.int32))
            index = _row_of(taken, R)
            live = live & (index < batch)
            entering = (ended & live)[:, None]
            following = tl.where(entering, _start(z0, index, dim, cols, entering & real), following)
            if MIXED:
                store_due(at.precision, first_due(following), ended & live)
            tl.debug_barrier()  # the old columns have been read by all
            tl.store(row + STEPS, steps * 0, mask=ended)
        tl.store(state_at, following, mask=(works & live)[:, None])
        if MIXED:
            keep_change(kept, following, load_due(at.precision, works & live), works & live, cols, tile)
        tl.debug_barrier()
