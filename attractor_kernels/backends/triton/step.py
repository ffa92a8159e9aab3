"""The fused step for maps the package does not know: backends/reference/step.py in one launch, or in two.

A mixing group whose entries fit a tile and that is the whole of its problem takes one launch. Otherwise the first
launch measures tile by tile; the last program of a group to arrive adds up its tiles, in order, and solves its small
system, and the last group of a problem judges it; the second launch writes the next iterates, and the last program of
a group puts the plain step in the place of a combination that overflowed. Who arrives last changes no sum.
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
from .small_solve import System, solve_small
from .stopping import (
    BEST_SAVED,
    DIVERGED,
    NONFINITE,
    ORDER,
    RESIDUAL,
    RUNNING,
    STATUS,
    STEPS,
    decide,
    judge,
    load_choice,
    load_progress,
    relative_residual,
    store_choice,
    store_progress,
)

_GROUPS = tl.constexpr(CONTROL_COLUMNS)
SAVE_BEST, SETTLED, GROUPS_IN = tl.constexpr(16), tl.constexpr(17), tl.constexpr(18)

# What a problem's part of `out` becomes.
_NOTHING, _PLAIN, _MIXED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_CURRENT, _BEST = tl.constexpr(3), tl.constexpr(4)


class Buffers(NamedTuple):
    """The operator's tensors; state-like ones are [problems, groups, entries]."""

    z: Any
    fz: Any
    out: Any
    best: Any
    history: Any  # [problems, groups, 2, SLOTS, stride]
    control: Any  # float64 [problems, columns]
    active: Any  # int64 [1]
    trace: Any  # float32 [max_steps, problems] or None
    partial: Any  # float64 scratch [problems * groups, tiles, 2 * SLOTS], or None with one tile


class Shape(NamedTuple):
    problems: Any
    groups: Any
    entries: Any
    stride: Any
    columns: Any  # of control
    sums: Any  # control columns of a group's sums
    tiles: Any  # of a group


class StepMethod(NamedTuple):
    """Compile-time choices and sizes: groups a program holds, entries of a tile, partial sums added at once."""

    SLOTS: Any
    AUTO: Any
    KEEP_BEST: Any
    ONE_GROUP: Any
    ONE_TILE: Any
    R: Any
    C: Any
    BATCH: Any


class Lanes(NamedTuple):
    """The groups a program holds, and its tile of them."""

    problem: Any  # int64 [R]
    number: Any  # of the group in it, int64 [R]
    live: Any  # bool [R]: whether there is such a group
    row: Any  # pointers [R] to the problem's control row
    group: Any  # ... to the group's columns in it
    sums: Any  # ... to its sums; after them the counters of tiles that arrived, of tiles not finite
    rings: Any
    at: Any  # offsets [R, C] into a state
    cols: Any
    mask: Any  # bool [R, C]


@triton.jit
def _lanes(b, shape, method, block, tile):
    SLOTS: tl.constexpr = method.SLOTS
    index = (block * method.R + tl.arange(0, method.R)).to(tl.int64)
    live = index < shape.problems * shape.groups
    problem = index // shape.groups
    group = index % shape.groups
    row = b.control + problem * shape.columns
    width: tl.constexpr = 1 + SLOTS + SLOTS * SLOTS
    ring = b.history + index * (2 * SLOTS * shape.stride)
    cols = tile * method.C + tl.arange(0, method.C)
    return Lanes(
        problem,
        group,
        live,
        row,
        row + _GROUPS + group * width,
        row + _GROUPS + shape.groups * width + group * shape.sums,
        Rings(ring, ring + SLOTS * shape.stride, shape.stride),
        (index * shape.entries)[:, None] + cols[None, :],
        cols,
        live[:, None] & (cols < shape.entries)[None, :],
    )


@triton.jit
def _running(lanes):
    """Where the problem still runs; before the first step its status is not yet set."""
    steps = tl.load(lanes.row + STEPS, mask=lanes.live, other=0.0)
    status = tl.load(lanes.row + STATUS, mask=lanes.live, other=0.0)
    return lanes.live & ((steps == 0) | (status == RUNNING)), steps


@triton.jit
def _read(pointer, at, mask):
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _settle_ended(row, where):
    """A problem that has ended: its result once into the other buffer of iterates, then nothing."""
    settled = tl.load(row + SETTLED, mask=where, other=0.0)
    tl.debug_barrier()
    tl.store(row + ORDER, tl.where(settled > 0, _NOTHING, _CURRENT).to(tl.float64), mask=where)
    tl.store(row + SETTLED, settled * 0 + 1, mask=where)
    tl.store(row + SAVE_BEST, settled * 0, mask=where)


@triton.jit
def _measure(b, lanes, running, steps, sums_at, numbers, method):
    """The tile's sums, its g and h into the rings."""
    mask = lanes.mask & running[:, None]
    z = _read(b.z, lanes.at, mask)
    f = _read(b.fz, lanes.at, mask)
    differences = available(steps + 1, lanes.group, running, method.SLOTS)
    tile_sums(
        sums_at, z, f, lanes.rings, steps + 1, differences, running, numbers.damping, lanes.cols, mask, method.SLOTS
    )


@triton.jit
def _solve_group(lanes, steps, where, numbers, method):
    """The small systems of the groups `where`, whose sums are complete; steps: with this one."""
    SLOTS: tl.constexpr = method.SLOTS
    if SLOTS > 0:
        count = tl.where(where, available(steps, lanes.group, where, SLOTS), 0.0)
        system = System(lanes.sums, lanes.group + 1 + SLOTS, steps)
        used = solve_small(system, count, numbers.ridge, lanes.group + 1, SLOTS)
        tl.debug_barrier()
        tl.store(lanes.group + SLOTS, used, mask=where)
        store_gram_row(lanes.sums, lanes.group, steps, count, SLOTS)


@triton.jit
def _judge_problem(b, problem, row, r2, f2, along, where, shape, numbers, method, EPS: tl.constexpr):
    """Counts a step of the problems `where` and orders what `out` becomes."""
    before = load_progress(row, where)
    p, status, is_best = judge(before, r2, f2, numbers, EPS)
    begun = where & (before.steps > 0)
    goes_on = where & (status == RUNNING)
    ended = where & (status != RUNNING)
    was_saved = tl.load(row + BEST_SAVED, mask=begun, other=1.0) > 0
    save = goes_on & (was_saved == 0) & (is_best == 0)
    saved = (is_best == 0) & (was_saved | save)

    failed = (status == DIVERGED) | (status == NONFINITE)
    use_best = ended & (p.best_f2 >= 0)
    if not method.KEEP_BEST:
        use_best = use_best & failed
    elsewhere = use_best & (p.best_step < p.steps)
    # The best iterate is in its own buffer, or it was the last one, which `out` still holds.
    at_end = tl.where(elsewhere, tl.where(saved, _BEST, _NOTHING), _CURRENT)
    order = tl.where(goes_on, _PLAIN, at_end)
    choice = load_choice(row, begun)
    if method.SLOTS > 0:
        size = shape.groups * shape.entries
        choice, mixes = decide(choice, p.steps, r2, along, size, method.AUTO, method.ONE_GROUP)
        order = tl.where(goes_on & mixes, _MIXED, order)
    tl.debug_barrier()  # the old columns have been read by all

    relative = relative_residual(r2, f2)
    if b.trace is not None:
        tl.store(b.trace + (p.steps - 1).to(tl.int64) * shape.problems + problem, relative, mask=where)
    residual = tl.where(use_best, relative_residual(p.best_r2, p.best_f2), relative)
    tl.store(row + STATUS, status.to(tl.float64), mask=where)
    tl.store(row + STEPS, tl.where(use_best, p.best_step, p.steps), mask=where)
    tl.store(row + RESIDUAL, residual.to(tl.float64), mask=where)
    tl.store(row + ORDER, order.to(tl.float64), mask=where)
    tl.store(row + SAVE_BEST, save.to(tl.float64), mask=where)
    tl.store(row + BEST_SAVED, saved.to(tl.float64), mask=where)
    tl.store(row + SETTLED, r2 * 0, mask=where)
    store_progress(row, p, where)
    store_choice(row, choice, where)
    gone = tl.sum(ended.to(tl.int64))
    if gone > 0:
        tl.atomic_add(b.active, -gone)


@triton.jit
def _combine(b, lanes, numbers, method):
    """What the orders say of a tile of `out`; returns where a combination was written and where it is finite [R]."""
    SLOTS: tl.constexpr = method.SLOTS
    order = tl.load(lanes.row + ORDER, mask=lanes.live, other=0.0)
    save = tl.load(lanes.row + SAVE_BEST, mask=lanes.live, other=0.0) > 0
    saved = lanes.mask & save[:, None]
    kept = tl.load(b.out + lanes.at, mask=saved, other=0.0)
    tl.store(b.best + lanes.at, kept, mask=saved)
    tl.debug_barrier()  # `out` has been read by all
    mixes = order == _MIXED
    steps = (order == _PLAIN) | mixes
    moving = lanes.mask & steps[:, None]
    finite = lanes.live
    if SLOTS > 0:
        count = tl.load(lanes.row + STEPS, mask=lanes.live, other=0.0)
        following = newest(lanes.rings.h, count, lanes.rings.stride, lanes.cols, moving, SLOTS)
        mixed, used = mixed_step(following, lanes.rings, lanes.group, count, mixes, lanes.cols, moving, SLOTS)
        mixes = mixes & (used > 0)
        finite = all_finite(mixed, b.out, moving)
        following = tl.where((mixes & finite)[:, None], mixed, following)
    else:
        z = _read(b.z, lanes.at, moving)
        following = z + numbers.damping * (_read(b.fz, lanes.at, moving) - z)
    from_z = lanes.mask & (order == _CURRENT)[:, None]
    from_best = lanes.mask & (order == _BEST)[:, None]
    following = tl.where(from_z, _read(b.z, lanes.at, from_z), following)
    following = tl.where(from_best, _read(b.best, lanes.at, from_best), following)
    written = lanes.mask & (order != _NOTHING)[:, None]
    tl.store(b.out + lanes.at, following.to(b.out.dtype.element_ty), mask=written)
    return mixes, finite


@triton.jit
def _keep_count(lanes, accepted, method):
    """The differences that stay valid after a step, from those before it."""
    if method.SLOTS > 0:
        steps = tl.load(lanes.row + STEPS, mask=lanes.live, other=0.0)
        count = available(steps, lanes.group, accepted, method.SLOTS)
        moved = tl.load(lanes.row + STATUS, mask=lanes.live, other=0.0) == RUNNING
        tl.debug_barrier()
        tl.store(lanes.group, tl.where(accepted, count, 0.0), mask=lanes.live & moved)


@triton.jit
def step_whole(b, shape, numbers, method, EPS: tl.constexpr):
    """A step of R problems of one group and one tile each."""
    lanes = _lanes(b, shape, method, tl.program_id(0), 0)
    running, before = _running(lanes)
    _measure(b, lanes, running, before, lanes.sums, numbers, method)
    tl.debug_barrier()
    r2 = tl.load(lanes.sums, mask=running, other=0.0)
    f2 = tl.load(lanes.sums + 1, mask=running, other=0.0)
    along = r2
    if method.SLOTS > 0:
        along = r2 - tl.load(lanes.sums + 3, mask=running, other=0.0)
    _solve_group(lanes, before + 1, running, numbers, method)
    _settle_ended(lanes.row, lanes.live & (running == 0))
    _judge_problem(b, lanes.problem, lanes.row, r2, f2, along, running, shape, numbers, method, EPS)
    tl.debug_barrier()
    mixes, finite = _combine(b, lanes, numbers, method)
    _keep_count(lanes, mixes & finite, method)


@triton.jit
def _arrived(counter, where, expected):
    """Where this program is the last of `expected` to come by; the counter then starts again."""
    tl.debug_barrier()  # what the program has written comes before its arrival
    last = where & (tl.atomic_add(counter, where.to(tl.float64), mask=where, sem="acq_rel") == expected - 1)
    tl.store(counter, tl.zeros_like(last.to(tl.float64)), mask=last)
    return last


@triton.jit
def _total(at, stride, count, where, BATCH: tl.constexpr):
    """The sum of at[0], at[stride], ..., at[(count - 1) * stride] of each lane, always in the same order [R]."""
    part = tl.arange(0, BATCH)
    total = tl.zeros((at.shape[0], BATCH), tl.float64)
    for first in range(0, count, BATCH):
        mask = where[:, None] & (first + part < count)[None, :]
        from_all = at[:, None] + ((first + part) * stride)[None, :]
        # Other programs wrote it: past the first-level cache.
        total += tl.load(from_all, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 1)  # not in the loop: Triton (3.7) fails on loops of sums that are used twice


@triton.jit
def _judge_sums(b, lanes, where, shape, numbers, method, EPS: tl.constexpr):
    """_judge_problem from the sums of all its groups."""
    SLOTS: tl.constexpr = method.SLOTS
    width: tl.constexpr = 1 + SLOTS + SLOTS * SLOTS
    sums = lanes.row + _GROUPS + shape.groups * width
    r2 = _total(sums, shape.sums, shape.groups, where, method.BATCH)
    f2 = _total(sums + 1, shape.sums, shape.groups, where, method.BATCH)
    along = r2
    if SLOTS > 0:
        along = r2 - _total(sums + 3, shape.sums, shape.groups, where, method.BATCH)
    _judge_problem(b, lanes.problem, lanes.row, r2, f2, along, where, shape, numbers, method, EPS)


@triton.jit
def step_measure(b, shape, numbers, method, EPS: tl.constexpr):
    """The first launch of a step in two."""
    SLOTS: tl.constexpr = method.SLOTS
    SUMS: tl.constexpr = 2 * SLOTS if SLOTS > 0 else 2
    tile = tl.program_id(0) % shape.tiles
    lanes = _lanes(b, shape, method, tl.program_id(0) // shape.tiles, tile)
    running, before = _running(lanes)
    if method.ONE_TILE:
        _measure(b, lanes, running, before, lanes.sums, numbers, method)
        complete = running
        tl.debug_barrier()
    else:
        index = tl.program_id(0) // shape.tiles * method.R + tl.arange(0, method.R)
        partial = b.partial + index.to(tl.int64) * (shape.tiles * SUMS)
        _measure(b, lanes, running, before, partial + tile * SUMS, numbers, method)
        complete = _arrived(lanes.sums + SUMS, running, shape.tiles)
        if tl.max(complete.to(tl.int32)) > 0:
            for k in range(SUMS):
                tl.store(lanes.sums + k, _total(partial + k, SUMS, shape.tiles, complete, method.BATCH), mask=complete)
        tl.debug_barrier()
    if tl.max(complete.to(tl.int32)) > 0:
        _solve_group(lanes, before + 1, complete, numbers, method)

    # The judge of a problem is whoever completes its last group; of one that has ended, its first group's first tile.
    last = _arrived(lanes.row + GROUPS_IN, complete, shape.groups)
    if tl.max(last.to(tl.int32)) > 0:
        _judge_sums(b, lanes, last, shape, numbers, method, EPS)
    first = (lanes.number == 0) & (tile == 0)
    _settle_ended(lanes.row, lanes.live & (running == 0) & first)


@triton.jit
def step_combine(b, shape, numbers, method, EPS: tl.constexpr):
    """The second launch of a step in two."""
    SLOTS: tl.constexpr = method.SLOTS
    SUMS: tl.constexpr = 2 * SLOTS if SLOTS > 0 else 2
    lanes = _lanes(b, shape, method, tl.program_id(0) // shape.tiles, tl.program_id(0) % shape.tiles)
    mixes, finite = _combine(b, lanes, numbers, method)
    if method.ONE_TILE:
        _keep_count(lanes, mixes & finite, method)
    elif SLOTS > 0:
        failures = lanes.sums + SUMS + 1
        tl.atomic_add(failures, mixes.to(tl.float64), mask=mixes & (finite == 0))
        last = _arrived(lanes.sums + SUMS, lanes.live, shape.tiles)
        failed = last & (tl.load(failures, mask=last, other=0.0, cache_modifier=".cg") > 0)
        if tl.max(failed.to(tl.int32)) > 0:
            steps = tl.load(lanes.row + STEPS, mask=failed, other=0.0)
            for tile in range(shape.tiles):
                whole = _lanes(b, shape, method, tl.program_id(0) // shape.tiles, tile)
                mask = whole.mask & failed[:, None]
                h = newest(whole.rings.h, steps, whole.rings.stride, whole.cols, mask, SLOTS)
                tl.store(b.out + whole.at, h.to(b.out.dtype.element_ty), mask=mask)
        tl.store(failures, tl.zeros_like(failed.to(tl.float64)), mask=failed)
        order = tl.load(lanes.row + ORDER, mask=last, other=0.0)
        used = tl.load(lanes.group + SLOTS, mask=last, other=0.0)
        accepted = last & (order == _MIXED) & (used > 0) & (failed == 0)
        count = available(tl.load(lanes.row + STEPS, mask=last, other=0.0), lanes.group, accepted, SLOTS)
        moved = last & ((order == _MIXED) | (order == _PLAIN))
        tl.debug_barrier()
        tl.store(lanes.group, tl.where(accepted, count, 0.0), mask=moved)
