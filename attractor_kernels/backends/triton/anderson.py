"""One step of Anderson acceleration on a tile: R groups, some of their entries.

A group keeps the last SLOTS residuals g = f(z) - z and as many h = z + damping g in two rings, each step's at slot
(step modulo SLOTS); differences are formed as they are read, so a step writes two vectors and reads the others once.
The Gram matrix of the differences gains one row a step; it goes by the slots of the newer ends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .small_solve import solve_small


class Rings(NamedTuple):
    """Pointers [R] to each group's slot 0, and elements from slot to slot."""

    g: Any
    h: Any
    stride: Any


@triton.jit
def slot_of_age(steps, age: tl.constexpr, SLOTS: tl.constexpr):
    return (steps.to(tl.int64) + (SLOTS - age)) % SLOTS


@triton.jit
def _at(ring, slot, stride, cols):
    return (ring + slot * stride)[:, None] + cols[None, :]


@triton.jit
def as_stored(x, like):
    """x as it will be read back from where `like` points."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _inverse_power(largest):
    """A power of two near 1 / largest, so that squares neither overflow nor vanish; 1 for 0, Inf and NaN."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    usable = (exponent > 0) & (exponent < 255)
    held = tl.minimum(tl.maximum(exponent, 27), 227)
    power = ((254 - held) << 23).to(tl.float32, bitcast=True)
    return tl.where(usable, power, 1.0)


@triton.jit
def _unscaled(scaled_sum, scale):
    inverse = 1.0 / scale.to(tl.float64)
    return scaled_sum.to(tl.float64) * inverse * inverse


@triton.jit
def available(steps, count, SLOTS: tl.constexpr):
    """Differences that a step may use if it mixes: those kept and the new one."""
    return tl.where(steps > 1, tl.minimum(count + 1, SLOTS - 1), 0.0)


@triton.jit
def tile_sums(z, f, rings, steps, differences, keeps, damping, cols, mask, SLOTS: tl.constexpr):
    """The tile's part of all inner products of a step, and its g and h into the rings (SLOTS > 0).

    z, f: float32 [R, C], zero outside `mask`; steps: with this one; differences: of them used [R]; keeps: lanes that
    write. Returns float64 [R] each: |g|^2, |f|^2 and, with a history, <d_0, d_0>, <d_0, g>, then <d_j, d_0>, <d_j, g>
    for j = 1, ..., SLOTS - 2.
    """
    g = f - z
    largest = tl.max(tl.maximum(tl.abs(f), tl.abs(z)), 1)
    scale = _inverse_power(largest)
    s = scale[:, None]
    scaled = g * s
    r2 = _unscaled(tl.sum(scaled * scaled, 1), scale)
    f2 = _unscaled(tl.sum((f * s) * (f * s), 1), scale)
    sums = (r2, f2)
    if SLOTS > 0:
        slot = slot_of_age(steps, 0, SLOTS)
        kept = mask & keeps[:, None]
        h = z + damping * g
        tl.store(_at(rings.g, slot, rings.stride, cols), g.to(rings.g.dtype.element_ty), mask=kept)
        tl.store(_at(rings.h, slot, rings.stride, cols), h.to(rings.h.dtype.element_ty), mask=kept)
        newer = as_stored(g, rings.g)
        scaled = newer * s
        newest = scaled * 0
        for j in tl.static_range(SLOTS - 1):
            valid = mask & (j < differences)[:, None]
            at = _at(rings.g, slot_of_age(steps, j + 1, SLOTS), rings.stride, cols)
            older = tl.load(at, mask=valid, other=0.0).to(tl.float32)
            d = tl.where(valid, (newer - older) * s, 0.0)
            if j == 0:
                newest = d
            sums = sums + (
                _unscaled(tl.sum(d * newest, 1), scale),
                _unscaled(tl.sum(d * scaled, 1), scale),
            )
            newer = older
    return sums


@triton.jit
def mixing_weights(sums, gram, steps, count, active, ridge, SLOTS: tl.constexpr):
    """Weights by age and how many are used [R], from a step's complete sums; its new Gram row is stored.

    gram: pointers [R] to [SLOTS, SLOTS] float64; count: valid differences, the new one included; active: lanes that
    mix.
    """
    M: tl.constexpr = SLOTS - 1
    rows = ()
    rhs = ()
    for b in tl.static_range(M):
        row = ()
        for a in tl.static_range(b + 1):
            if a == 0:
                row = row + (sums[2 + 2 * b],)
            else:
                at = gram + slot_of_age(steps, a, SLOTS) * SLOTS + slot_of_age(steps, b, SLOTS)
                row = row + (tl.load(at, mask=active & (b < count), other=0.0),)
        rows = rows + (row,)
        rhs = rhs + (sums[3 + 2 * b],)
    return solve_small(rows, rhs, count, active, ridge, M)


@triton.jit
def store_gram(sums, gram, steps, count, active, SLOTS: tl.constexpr):
    """A step's new row into the Gram matrix."""
    for b in tl.static_range(SLOTS - 1):
        at = gram + slot_of_age(steps, 0, SLOTS) * SLOTS + slot_of_age(steps, b, SLOTS)
        tl.store(at, sums[2 + 2 * b], mask=active & (b < count))


@triton.jit
def mixed_step(h, rings, steps, weights, used, cols, mask, SLOTS: tl.constexpr):
    """h - sum_j weight_j (h_j - h_{j+1}) over the used differences [R, C]."""
    newer = as_stored(h, rings.h)
    mixed = h
    for j in tl.static_range(SLOTS - 1):
        valid = mask & (j < used)[:, None]
        at = _at(rings.h, slot_of_age(steps, j + 1, SLOTS), rings.stride, cols)
        older = tl.load(at, mask=valid, other=0.0).to(tl.float32)
        mixed -= tl.where(valid, weights[j].to(tl.float32)[:, None] * (newer - older), 0.0)
        newer = older
    return mixed


@triton.jit
def all_finite(x, like, mask):
    """Where all of a lane's entries are finite in the dtype that `like` points to [R]."""
    stored = as_stored(x, like)
    return tl.max(tl.where(mask & (stored - stored != 0), 1, 0), 1) == 0
