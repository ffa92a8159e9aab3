"""The small system of Anderson acceleration for a vector of groups: csrc/common/small_solve.h.

Unrolled over vectors [R]: every thread factors its own group's system in registers and no thread waits for another.
The Gram matrix stays in memory, where each entry is read once a try. Differences go by their age, 0 the newest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..reference import small_solve
from .stopping import finite

_WEIGHT_CAP = tl.constexpr(small_solve.WEIGHT_CAP)
_PIVOT_FLOOR = tl.constexpr(1e-7)  # as everywhere for float32 sums


class System(NamedTuple):
    """Where the small systems of [R] groups lie."""

    sums: Any  # pointers [R] to a step's inner products: from the third on <d_j, d_0>, <d_j, g> by age j
    gram: Any  # pointers [R] to the rows of older steps, [SLOTS, SLOTS] by the slots of the differences' newer ends
    steps: Any  # [R], with this one


@triton.jit
def slot_of_age(steps, age, SLOTS: tl.constexpr):
    """Where the rings keep what is `age` steps old."""
    return (steps.to(tl.int32) + (SLOTS - age)) % SLOTS


@triton.jit
def _entry(system, a: tl.constexpr, b: tl.constexpr, where, SLOTS: tl.constexpr):
    """<d_a, d_b> for ages a <= b, zero elsewhere than `where`."""
    if a == 0:
        at = system.sums + (2 + 2 * b)
    else:
        at = system.gram + slot_of_age(system.steps, a, SLOTS) * SLOTS + slot_of_age(system.steps, b, SLOTS)
    return tl.load(at, mask=where, other=0.0)


@triton.jit
def _factor(system, used, ridge, SLOTS: tl.constexpr):
    """Weights of the newest `used` differences, whether all pivots count, whether all weights are sane; all [R].

    Elimination begins with the oldest; a difference past `used` is a row of the identity with right-hand side 0.
    """
    M: tl.constexpr = SLOTS - 1
    mean = used * 0
    for a in tl.static_range(M):
        mean += _entry(system, a, a, used > a, SLOTS)
    usable = (mean > 0) & finite(mean)
    shift = mean * ridge / tl.maximum(used, 1.0)
    lower = ()
    inverse = ()
    y = ()
    for i in tl.static_range(M):
        age = M - 1 - i
        here = used > age
        diagonal = tl.where(here, _entry(system, age, age, here, SLOTS) + shift, 1.0)
        pivot = diagonal
        rest = tl.load(system.sums + (3 + 2 * age), mask=here, other=0.0)
        scaled = ()  # L_ij D_j
        row = ()
        for j in tl.static_range(i):
            entry = _entry(system, age, M - 1 - j, used > M - 1 - j, SLOTS)
            for k in tl.static_range(j):
                entry = entry - scaled[k] * lower[j][k]
            factor = entry * inverse[j]
            pivot = pivot - entry * factor
            rest = rest - factor * y[j]
            scaled = scaled + (entry,)
            row = row + (factor,)
        usable = usable & (pivot > diagonal * _PIVOT_FLOOR)
        lower = lower + (row,)
        inverse = inverse + (1.0 / pivot,)
        y = y + (rest,)
    weights = ()
    sane = usable
    for a in tl.static_range(M):  # from the newest back
        weight = y[M - 1 - a] * inverse[M - 1 - a]
        for k in tl.static_range(a):
            weight = weight - lower[M - 1 - k][M - 1 - a] * weights[k]
        sane = sane & (tl.abs(weight) <= _WEIGHT_CAP)  # false for NaN
        weights = weights + (weight,)
    return weights, usable, sane


@triton.jit
def solve_small(system, count, ridge, weights_at, SLOTS: tl.constexpr):
    """Stores the weights by age at `weights_at` [R] and returns how many differences they are of [R]; 0: none.

    count: valid differences [R], the new one included; 0 where nothing is to be solved.
    """
    tried = count
    used = count * 0
    while tl.max(tried) > 0:
        weights, usable, sane = _factor(system, tried, ridge, SLOTS)
        settled = (tried > 0) & usable
        used = tl.where(settled & sane, tried, used)
        for a in tl.static_range(SLOTS - 1):
            tl.store(weights_at + a, weights[a], mask=settled & sane & (tried > a))
        tried = tl.where(settled, 0.0, tl.maximum(tried - 1, 0.0))  # without its oldest difference
    return used
