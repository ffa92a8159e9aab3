"""The small system of Anderson acceleration for a vector of groups: csrc/common/small_solve.h.

The matrix is a tuple of vectors, unrolled: every thread holds its own group's entries in registers and no thread
waits for another. Differences go by their age, 0 the newest.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference import small_solve
from .stopping import finite

_WEIGHT_CAP = tl.constexpr(small_solve.WEIGHT_CAP)
_PIVOT_FLOOR = tl.constexpr(1e-7)  # as everywhere for float32 sums


@triton.jit
def _factor(gram, rhs, used, ridge, M: tl.constexpr):
    """Weights of the newest `used` differences, whether all pivots count, whether all weights are sane; all [R].

    gram[b][a] = <d_b, d_a> for ages a <= b. Elimination begins with the oldest; a difference past `used` is a row of
    the identity with right-hand side 0.
    """
    mean = used * 0
    for a in tl.static_range(M):
        mean += tl.where(a < used, gram[a][a], 0.0)
    usable = (mean > 0) & finite(mean)
    shift = mean * ridge / tl.maximum(used, 1.0)
    lower = ()
    inverse = ()
    y = ()
    for i in tl.static_range(M):
        here = used > M - 1 - i
        diagonal = tl.where(here, gram[M - 1 - i][M - 1 - i] + shift, 1.0)
        pivot = diagonal
        rest = tl.where(here, rhs[M - 1 - i], 0.0)
        scaled = ()  # L_ij D_j
        row = ()
        for j in tl.static_range(i):
            entry = tl.where(used > M - 1 - j, gram[M - 1 - j][M - 1 - i], 0.0)
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
def solve_small(gram, rhs, count, active, ridge, M: tl.constexpr):
    """Weights by age, zero from `used` on, and `used` [R]: how many differences the solution is of, 0 if none is.

    gram, rhs: as in _factor; count: valid differences [R]; active: where a system is to be solved.
    """
    weights = ()
    for _ in tl.static_range(M):
        weights = weights + (count * 0,)
    tried = tl.where(active, count, 0.0)
    used = count * 0
    while tl.max(tried) > 0:
        solution, usable, sane = _factor(gram, rhs, tried, ridge, M)
        settled = (tried > 0) & usable
        chosen = settled & sane
        kept = ()
        for a in tl.static_range(M):
            kept = kept + (tl.where(chosen & (a < tried), solution[a], weights[a]),)
        weights = kept
        used = tl.where(chosen, tried, used)
        tried = tl.where(settled, 0.0, tl.maximum(tried - 1, 0.0))  # without its oldest difference
    return weights, used
