"""When a problem ends, and when Auto mixes: csrc/common/stopping.h and auto_choice.h for a vector of problems.

Everything is float64 [R], counts and modes included, so that one kind of vector holds all a problem remembers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..reference import advance, auto_choice, stopping

CONVERGED = tl.constexpr(stopping.CONVERGED)
MAX_STEPS = tl.constexpr(stopping.MAX_STEPS)
DIVERGED = tl.constexpr(stopping.DIVERGED)
NONFINITE = tl.constexpr(stopping.NONFINITE)
STAGNATED = tl.constexpr(stopping.STAGNATED)
RUNNING = tl.constexpr(stopping.RUNNING)
_DIVERGENCE2 = tl.constexpr(stopping.DIVERGENCE_FACTOR**2)
_STAGNATION_STEPS = tl.constexpr(stopping.STAGNATION_STEPS)
_STAGNATION_EPS = tl.constexpr(stopping.STAGNATION_EPS)

_COSINE2 = tl.constexpr(auto_choice.COSINE2 + auto_choice.PRICED2 * (advance.AUTO_PRICE - 1))
_CHANCE2 = tl.constexpr(auto_choice.CHANCE2)
_MOST2 = tl.constexpr(auto_choice.MOST2)
_STALL2 = tl.constexpr(auto_choice.STALL2)
_WINDOW = tl.constexpr(auto_choice.WINDOW)
_TRIAL = tl.constexpr(auto_choice.TRIAL)
_WINDOW_STEPS = tl.constexpr(int(auto_choice.WINDOW * advance.AUTO_PRICE + 0.5))
_PICARD = tl.constexpr(auto_choice.PICARD)
_ANDERSON = tl.constexpr(auto_choice.ANDERSON)
_ON_TRIAL = tl.constexpr(auto_choice.ON_TRIAL)
_KEEP_PICARD = tl.constexpr(auto_choice.KEEP_PICARD)
_KEEP_ANDERSON = tl.constexpr(auto_choice.KEEP_ANDERSON)
_RESTART2 = tl.constexpr(advance.RESTART_FACTOR2)

assert advance.AUTO_PRICE <= auto_choice.DEAR  # a dearer step would be for stalled problems only


class Numbers(NamedTuple):
    """A solve's numbers. Counts are floats too: the compiler makes a kernel for each kind of integer it meets."""

    damping: Any
    ridge: Any
    rtol: Any
    atol: Any
    max_steps: Any
    min_steps: Any


class Progress(NamedTuple):
    """How far a problem has come; all float64 [R]."""

    steps: Any  # evaluations of f so far
    first2: Any  # |g|^2 at the first finite step; negative before it
    best_r2: Any  # |g|^2 and |f|^2 of the best iterate
    best_f2: Any  # negative before the first finite step
    best_step: Any


class Choice(NamedTuple):
    """What decides whether a problem mixes; all float64 [R]."""

    previous_r2: Any
    level: Any  # lowest |g|^2 since the history was last cleared
    mode: Any  # of Auto
    since: Any
    picard2: Any
    entry_r2: Any
    anderson2: Any


# Columns of a control row: the result, a problem's progress and choice, what the last step ordered. The operator
# `anderson_step` promises the first three.
STATUS, STEPS, RESIDUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_PROGRESS, _CHOICE = tl.constexpr(3), tl.constexpr(7)
ORDER, BEST_SAVED = tl.constexpr(14), tl.constexpr(15)


@triton.jit
def load_progress(control, where):
    """From control rows [R]; before the first step, with STEPS = 0, all columns may hold anything."""
    steps = tl.load(control + STEPS, mask=where, other=0.0)
    begun = where & (steps > 0)
    return Progress(
        steps,
        tl.load(control + _PROGRESS, mask=begun, other=-1.0),
        tl.load(control + _PROGRESS + 1, mask=begun, other=0.0),
        tl.load(control + _PROGRESS + 2, mask=begun, other=-1.0),
        tl.load(control + _PROGRESS + 3, mask=begun, other=0.0),
    )


@triton.jit
def load_choice(control, begun):
    return Choice(
        tl.load(control + _CHOICE, mask=begun, other=0.0),
        tl.load(control + _CHOICE + 1, mask=begun, other=0.0),
        tl.load(control + _CHOICE + 2, mask=begun, other=0.0),
        tl.load(control + _CHOICE + 3, mask=begun, other=0.0),
        tl.load(control + _CHOICE + 4, mask=begun, other=0.0),
        tl.load(control + _CHOICE + 5, mask=begun, other=0.0),
        tl.load(control + _CHOICE + 6, mask=begun, other=0.0),
    )


@triton.jit
def store_progress(control, p, where):
    """All but the steps."""
    tl.store(control + _PROGRESS, p.first2, mask=where)
    tl.store(control + _PROGRESS + 1, p.best_r2, mask=where)
    tl.store(control + _PROGRESS + 2, p.best_f2, mask=where)
    tl.store(control + _PROGRESS + 3, p.best_step, mask=where)


@triton.jit
def store_choice(control, c, where):
    tl.store(control + _CHOICE, c.previous_r2, mask=where)
    tl.store(control + _CHOICE + 1, c.level, mask=where)
    tl.store(control + _CHOICE + 2, c.mode, mask=where)
    tl.store(control + _CHOICE + 3, c.since, mask=where)
    tl.store(control + _CHOICE + 4, c.picard2, mask=where)
    tl.store(control + _CHOICE + 5, c.entry_r2, mask=where)
    tl.store(control + _CHOICE + 6, c.anderson2, mask=where)


@triton.jit
def store_previous_r2(control, r2, where):
    """Of a Choice, where nothing else of it is kept."""
    tl.store(control + _CHOICE, r2, mask=where)


@triton.jit
def finite(x):
    return x - x == 0


@triton.jit
def relative_residual(r2, f2):
    """|g| / |f|; 0 / 0 is 0: a map whose fixed point is the origin, at it."""
    return tl.where(r2 == 0, 0.0, tl.sqrt(r2) / tl.sqrt(f2)).to(tl.float32)


@triton.jit
def within_tolerance(r2, f2, numbers):
    bound = tl.sqrt(f2) * numbers.rtol + numbers.atol
    return r2 <= bound * bound


@triton.jit
def judge(p, r2, f2, numbers, EPS: tl.constexpr):
    """Counts one evaluation: the new progress, the status (RUNNING where the problem goes on), where it is the best."""
    steps = p.steps + 1
    sound = finite(r2) & finite(f2)
    first2 = tl.where(sound & (p.first2 < 0), r2, p.first2)
    best = sound & ((p.best_f2 < 0) | (r2 * p.best_f2 < p.best_r2 * f2))
    best_r2 = tl.where(best, r2, p.best_r2)
    best_f2 = tl.where(best, f2, p.best_f2)
    best_step = tl.where(best, steps, p.best_step)

    # From the weakest claim to the strongest: a later line overrules an earlier one.
    enough = steps >= numbers.min_steps
    floor2: tl.constexpr = (_STAGNATION_EPS * EPS) * (_STAGNATION_EPS * EPS)
    stuck = enough & (steps - best_step >= _STAGNATION_STEPS) & (best_r2 <= best_f2 * floor2)
    status = tl.where(stuck, STAGNATED, RUNNING)
    status = tl.where(steps >= numbers.max_steps, MAX_STEPS, status)
    status = tl.where(r2 > first2 * _DIVERGENCE2, DIVERGED, status)
    status = tl.where(enough & within_tolerance(r2, f2, numbers), CONVERGED, status)
    status = tl.where(sound, status, NONFINITE)
    return Progress(steps, first2, best_r2, best_f2, best_step), status, best


@triton.jit
def _over_window(contraction2):
    """A squared contraction per Picard step, over as many of them as an Anderson window costs."""
    product = contraction2
    for _ in tl.static_range(_WINDOW_STEPS - 1):
        product = product * contraction2
    return product


@triton.jit
def accelerates(mode):
    """Whether Auto mixes in this mode."""
    return (mode == _ANDERSON) | (mode == _KEEP_ANDERSON)


@triton.jit
def _choose(c, steps, r2, level, along, entries):
    """Auto's decision, see csrc/common/auto_choice.h; along = <g_k, g_{k-1}>."""
    since = c.since + 1
    chance2 = tl.full((), _CHANCE2, tl.float64) / (tl.zeros((), tl.float64) + entries)
    cosine2 = tl.minimum(chance2 + _COSINE2, _MOST2)
    aligned = along * along > cosine2 * r2 * c.previous_r2
    start = (c.mode == _PICARD) & (steps >= 2) & (aligned | (r2 > c.previous_r2 * _STALL2))
    contraction2 = r2 / c.previous_r2

    judged = (c.mode == _ANDERSON) & (since >= _WINDOW)
    anderson2 = tl.where(judged, r2 / c.entry_r2, c.anderson2)
    trial = judged & ((anderson2 < _over_window(c.picard2)) == 0)
    tried = (c.mode == _ON_TRIAL) & (since >= _TRIAL)

    mode = tl.where(start, _ANDERSON, c.mode)
    mode = tl.where(trial, _ON_TRIAL, mode)
    mode = tl.where(tried, tl.where(_over_window(contraction2) < anderson2, _KEEP_PICARD, _KEEP_ANDERSON), mode)
    reset = start | judged
    picard2 = tl.where(start, contraction2, c.picard2)
    choice = Choice(r2, level, mode, tl.where(reset, 0.0, since), picard2, tl.where(reset, r2, c.entry_r2), anderson2)
    return choice, accelerates(mode)


@triton.jit
def decide(c, steps, r2, along, entries, AUTO: tl.constexpr, RESTARTS: tl.constexpr):
    """Whether the next step mixes [R]; steps: with this one.

    RESTARTS: the problem has one mixing group. Between groups a restart would carry a later token's residual to
    earlier ones.
    """
    first = steps == 1
    level = tl.where(first, r2, c.level)
    mixes = steps > 1
    if RESTARTS:
        restart = r2 > level * _RESTART2
        level = tl.where(restart, r2, level)
        mixes = mixes & (restart == 0)
    level = tl.minimum(level, r2)
    if AUTO:
        choice, wanted = _choose(c, steps, r2, level, along, entries)
        return choice, mixes & wanted
    else:
        return Choice(r2, level, c.mode, c.since, c.picard2, c.entry_r2, c.anderson2), mixes
