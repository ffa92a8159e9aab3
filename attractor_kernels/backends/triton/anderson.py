"""One step of Anderson acceleration on a tile: R groups, some of their entries.

A group keeps the last SLOTS residuals g = f(z) - z and as many h = z + damping g in two rings, each step's at slot
(step modulo SLOTS); differences are formed as they are read, so a step writes two vectors and reads the others once.
The Gram matrix of the differences gains one row a step; it goes by the slots of the newer ends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .small_solve import slot_of_age


class Rings(NamedTuple):
    """Pointers [R] to each group's slot 0, and elements from slot to slot."""

    g: Any
    h: Any
    stride: Any


@triton.jit
def _at(ring, slot, stride, cols):
    return (ring + slot * stride)[:, None] + cols[None, :]


@triton.jit
def newest(ring, steps, stride, cols, mask, SLOTS: tl.constexpr):
    """What a ring holds of this step, float32 [R, C]."""
    return tl.load(_at(ring, slot_of_age(steps, 0, SLOTS), stride, cols), mask=mask, other=0.0).to(tl.float32)


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
def available(steps, group, where, SLOTS: tl.constexpr):
    """Differences that a step may use if it mixes [R]: those kept and the new one; steps: with this one."""
    if SLOTS == 0:
        return steps * 0
    count = tl.load(group, mask=where & (steps > 1), other=0.0)
    return tl.where(steps > 1, tl.minimum(count + 1, SLOTS - 1), 0.0)


@triton.jit
def tile_sums(at, z, f, rings, steps, differences, where, damping, cols, mask, SLOTS: tl.constexpr):
    """The tile's part of all inner products of a step, to `at` [R], and its g and h into the rings (SLOTS > 0).

    z, f: float32 [R, C], zero outside `mask`; steps: with this one; differences: of them used [R]; where: lanes that
    write. The products: |g|^2, |f|^2 and, with a history, <d_0, d_0>, <d_0, g>, then <d_j, d_0>, <d_j, g> for
    j = 1, ..., SLOTS - 2.
    """
    g = f - z
    largest = tl.max(tl.maximum(tl.abs(f), tl.abs(z)), 1)
    scale = _inverse_power(largest)
    s = scale[:, None]
    scaled = g * s
    tl.store(at, _unscaled(tl.sum(scaled * scaled, 1), scale), mask=where)
    tl.store(at + 1, _unscaled(tl.sum((f * s) * (f * s), 1), scale), mask=where)
    if SLOTS > 0:
        slot = slot_of_age(steps, 0, SLOTS)
        kept = mask & where[:, None]
        h = z + damping * g
        tl.store(_at(rings.g, slot, rings.stride, cols), g.to(rings.g.dtype.element_ty), mask=kept)
        tl.store(_at(rings.h, slot, rings.stride, cols), h.to(rings.h.dtype.element_ty), mask=kept)
        newer = as_stored(g, rings.g)
        scaled = newer * s
        first = newer
        for j in range(SLOTS - 1):  # not unrolled: the loads of all differences at once would fill the registers
            valid = mask & (differences > j)[:, None]
            from_ring = _at(rings.g, slot_of_age(steps, j + 1, SLOTS), rings.stride, cols)
            older = tl.load(from_ring, mask=valid, other=0.0).to(tl.float32)
            d = tl.where(valid, (newer - older) * s, 0.0)
            first = tl.where(j == 0, d, first)
            tl.store(at + 2 + 2 * j, _unscaled(tl.sum(d * first, 1), scale), mask=where)
            tl.store(at + 3 + 2 * j, _unscaled(tl.sum(d * scaled, 1), scale), mask=where)
            newer = older


@triton.jit
def leave_out(sums, apart, where, SLOTS: tl.constexpr):
    """A step's inner products without those of differences that are apart [R], a bit of each age.

    So that they have the weight 0, and no part in others' weights but for the ridge.
    """
    bits = apart.to(tl.int32)
    zero = apart * 0
    for age in tl.static_range(SLOTS - 1):
        out = where & (((bits >> age) & 1) == 1)
        tl.store(sums + (3 + 2 * age), zero, mask=out)
        if age > 0:
            tl.store(sums + (2 + 2 * age), zero, mask=out | (where & ((bits & 1) == 1)))


@triton.jit
def store_gram_row(sums, group, steps, count, SLOTS: tl.constexpr):
    """A step's inner products of differences into the group's Gram matrix; count: valid differences."""
    gram = group + 1 + SLOTS + slot_of_age(steps, 0, SLOTS) * SLOTS
    for b in tl.static_range(SLOTS - 1):
        product = tl.load(sums + (2 + 2 * b), mask=count > b, other=0.0)
        tl.store(gram + slot_of_age(steps, b, SLOTS), product, mask=count > b)


@triton.jit
def mixed_step(h, rings, group, steps, where, cols, mask, SLOTS: tl.constexpr):
    """h - sum_j weight_j (h_j - h_{j+1}) over the differences used, and their number [R]."""
    used = tl.load(group + SLOTS, mask=where, other=0.0)
    newer = as_stored(h, rings.h)
    mixed = h
    for j in range(SLOTS - 1):
        counts = used > j
        valid = mask & counts[:, None]
        weight = tl.load(group + 1 + j, mask=counts, other=0.0).to(tl.float32)
        at = _at(rings.h, slot_of_age(steps, j + 1, SLOTS), rings.stride, cols)
        older = tl.load(at, mask=valid, other=0.0).to(tl.float32)
        mixed -= tl.where(valid, weight[:, None] * (newer - older), 0.0)
        newer = older
    return mixed, used


@triton.jit
def all_finite(x, like, mask):
    """Where all of a lane's entries are finite in the dtype that `like` points to [R]."""
    stored = as_stored(x, like)
    return tl.max(tl.where(mask & (stored - stored != 0), 1, 0), 1) == 0
