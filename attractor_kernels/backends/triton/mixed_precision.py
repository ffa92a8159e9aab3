"""When a product of changes will do, when one in full is due: csrc/common/mixed_precision.h for a vector of problems.

Beside it what csrc/common/step_decision.h makes of its answers: a verdict that was reached with changes is confirmed
in full, and a best iterate that was measured with changes is measured again before it is returned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import HISTORY_LIMIT
from .planning import PRECISION_COLUMNS
from .stopping import (
    CONVERGED,
    DIVERGED,
    NONFINITE,
    RUNNING,
    STAGNATED,
    Progress,
    within_tolerance,
)

# As in csrc/common/mixed_precision.h.
BFLOAT16_REFRESH2 = tl.constexpr(1e-4)
LEAST_GAIN2 = tl.constexpr(0.25)
PLAIN_REFRESH2 = tl.constexpr(0.25)

# How a row's map is evaluated: with a product of its change, of its state, or, exact all the same, of none.
CHANGES, FULL, NOTHING = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


class Precision(NamedTuple):
    """Of a problem; numbers float64 [R], the others bool [R]."""

    level2: Any  # squared relative residual at the last full evaluation
    refresh: Any
    always_full: Any
    was_full: Any  # the last evaluation
    best_full: Any  # the residual of the best iterate was measured in full
    ending: Any  # how the row ends once its best iterate was measured in full, or RUNNING
    held: Any  # evaluations that were not taken for a step
    apart: Any  # by age, a bit each: the difference is between two maps and says nothing about either


class Verdict(NamedTuple):
    """How rows stand after an evaluation; all [R]."""

    progress: Progress
    status: Any
    is_best: Any
    held: Any  # the evaluation is to be confirmed: the row stays where it is
    retreats: Any  # the row goes back to its best iterate, which is to be measured in full
    closes: Any  # this was that measurement


_AGES = tl.constexpr((1 << HISTORY_LIMIT) - 1)
# Columns: a Precision's in its order, then what is due.
_HELD = tl.constexpr(Precision._fields.index("held"))
_DUE = tl.constexpr(len(Precision._fields))
assert _DUE.value + 1 == PRECISION_COLUMNS


@triton.jit
def load_due(columns, where):
    """How the next evaluation is to be: CHANGES, FULL or NOTHING."""
    return tl.load(columns + _DUE, mask=where, other=0.0)


@triton.jit
def store_due(columns, due, where):
    tl.store(columns + _DUE, due, mask=where)


@triton.jit
def first_due(z):
    """Of rows that start at z [R, C]: the product with zero is known."""
    return tl.where(tl.max((z != 0).to(tl.int32), 1) == 0, NOTHING, FULL).to(tl.float64)


@triton.jit
def load_held(columns, begun):
    return tl.load(columns + _HELD, mask=begun, other=0.0)


@triton.jit
def load_precision(columns, begun):
    """From columns [R]; elsewhere than `begun` they may hold anything."""
    return Precision(
        tl.load(columns, mask=begun, other=0.0),
        tl.load(columns + 1, mask=begun, other=0.0) > 0,
        tl.load(columns + 2, mask=begun, other=0.0) > 0,
        tl.load(columns + 3, mask=begun, other=1.0) > 0,
        tl.load(columns + 4, mask=begun, other=0.0) > 0,
        tl.load(columns + 5, mask=begun, other=RUNNING),
        load_held(columns, begun),
        tl.load(columns + 7, mask=begun, other=0.0),
    )


@triton.jit
def store_precision(columns, m, where):
    tl.store(columns, m.level2, mask=where)
    tl.store(columns + 1, m.refresh.to(tl.float64), mask=where)
    tl.store(columns + 2, m.always_full.to(tl.float64), mask=where)
    tl.store(columns + 3, m.was_full.to(tl.float64), mask=where)
    tl.store(columns + 4, m.best_full.to(tl.float64), mask=where)
    tl.store(columns + 5, m.ending, mask=where)
    tl.store(columns + 6, m.held, mask=where)
    tl.store(columns + 7, m.apart, mask=where)


@triton.jit
def next_converges(r2, previous_r2, f2, numbers):
    """Where a row that contracts as it did in its last step ends with the next one."""
    return (previous_r2 > 0) & within_tolerance(r2 / previous_r2 * r2, f2, numbers)


@triton.jit
def full_is_due(m, held, last, steps, max_steps):
    """Where the next evaluation is to be in full; steps: those before it, of which there are some."""
    return held | last | m.refresh | m.always_full | (steps + 1 >= max_steps) | (m.ending != RUNNING)


@triton.jit
def observe(m, full, r2, f2, accelerates):
    """Takes in an evaluation, `full` or of changes; accelerates: where the problem is one that mixes.

    Its difference to the one before is apart where the map is not quite the same. An evaluation that is held is taken
    in too, but leaves no difference (`hold`).
    """
    now2 = tl.where(f2 > 0, r2 / f2, 0.0)
    always_full = m.always_full | (full & m.refresh & (now2 > m.level2 * LEAST_GAIN2))
    level2 = tl.where(full, now2, m.level2)
    fallen2 = level2 * BFLOAT16_REFRESH2
    refresh = (full == 0) & (now2 < tl.where(accelerates, fallen2, fallen2 * PLAIN_REFRESH2))
    jumped = (full & (m.was_full == 0)).to(tl.int32)
    apart = ((m.apart.to(tl.int32) << 1) | jumped) & _AGES
    return Precision(level2, refresh, always_full, full, m.best_full, m.ending, m.held, apart.to(tl.float64))


@triton.jit
def hold(before, m, full, progress_before, p, status, is_best, r2, f2):
    """What the verdict (p, status, is_best) on an evaluation means, and the Precision that goes with it.

    before, m: as they were and as `observe` left them. Rows return their best iterate where they fail only: none is
    kept for `keep="best"`, which is solved in full.
    """
    closes = before.ending != RUNNING
    status = tl.where(closes, before.ending, status)
    held = (full == 0) & (closes == 0) & ((status == CONVERGED) | (status == STAGNATED))
    is_best = is_best & (held == 0) & (closes == 0)
    best_full = tl.where(is_best, full, m.best_full)
    failed = (status == DIVERGED) | (status == NONFINITE)
    retreats = failed & (closes == 0) & (p.best_f2 >= 0) & (best_full == 0)
    ending = tl.where(retreats, status, before.ending)
    status = tl.where(held | retreats, RUNNING, status)

    was = progress_before
    progress = Progress(
        tl.where(closes, was.best_step, p.steps),
        tl.where(held, was.first2, p.first2),
        tl.where(closes, r2, tl.where(held, was.best_r2, p.best_r2)),
        tl.where(closes, f2, tl.where(held, was.best_f2, p.best_f2)),
        tl.where(held | closes, was.best_step, p.best_step),
    )
    apart = tl.where(held, before.apart, m.apart)
    m = Precision(m.level2, m.refresh, m.always_full, m.was_full, best_full, ending, m.held + held, apart)
    return m, Verdict(progress, status, is_best, held, retreats, closes)
