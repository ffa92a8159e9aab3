"""The MLP cell's map, its adjoint's and its tangent's: backends/reference/mlp.py.

The hidden layer is never complete: a slice of it is computed, transformed and multiplied on at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..reference import mlp
from .activations import SWIGLU, activate, sigmoid
from .loop import column_constants, row_constants, state_of
from .products import matrix, product

NONE, LAYER = tl.constexpr(mlp.NONE), tl.constexpr(mlp.LAYER)


class Mlp(NamedTuple):
    u: Any  # [B, D]
    w1: Any  # [H, D], or [2H, D] when gated
    w1_output_stride: Any
    w1_input_stride: Any
    b1: Any  # [H] or [2H], or None
    w2: Any  # [D, H]
    w2_output_stride: Any
    w2_input_stride: Any
    b2: Any  # [D] or None
    leak: Any  # [D] or None
    hidden: Any  # H
    skip: Any
    norm_eps: Any
    NORM: Any
    ACTIVATION: Any


class MlpLinear(NamedTuple):
    v: Any  # [B, D]
    q: Any  # [B, H], or [B, 2H] when gated
    n: Any  # [B, D]
    rinv: Any  # [B]
    w1: Any
    w1_output_stride: Any
    w1_input_stride: Any
    w2: Any
    w2_output_stride: Any
    w2_input_stride: Any
    leak: Any
    hidden: Any
    skip: Any
    NORM: Any
    GATED: Any


@triton.jit
def _mean(x, rows):
    """Over the state, of values that are zero past it [R, 1]."""
    return (tl.sum(x, 1) / rows.dim)[:, None]


@triton.jit
def _normalise(o, rows, eps, NORM: tl.constexpr):
    if NORM == NONE:
        return o
    if NORM == LAYER:
        o = tl.where(rows.mask, o - _mean(tl.where(rows.mask, o, 0.0), rows), 0.0)
    square = _mean(tl.where(rows.mask, o * o, 0.0), rows)
    return o / tl.sqrt_rn(square + eps)


@triton.jit
def _through_norm(w, cell, rows):
    """N w."""
    if cell.NORM == NONE:
        return w
    n = row_constants(cell.n, rows, rows.dim, 0)
    w = tl.where(rows.mask, w, 0.0)
    t = w - n * _mean(n * w, rows)
    if cell.NORM == LAYER:
        t -= _mean(w, rows)
    return t * tl.load(cell.rinv + rows.index, mask=rows.live, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _keep_factor(x, rows):
    """Puts the left factor of the products to come where they read it."""
    tl.store(rows.factor[:, None] + rows.cols[None, :], tl.where(rows.mask, x, 0.0))
    tl.debug_barrier()


@triton.jit
def _hidden_constants(pointer, rows, width, first, units, hidden):
    """Entries first + units of each row of a [B, width] tensor, float32 [R, units]."""
    at = (pointer + rows.index * width + first)[:, None] + units[None, :]
    return tl.load(at, mask=rows.live[:, None] & (units < hidden)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _first_layer(cell, left, rows, first, units, tile):
    """left W1^T for the hidden units first + units [R, units]."""
    total = tl.zeros((tile.R, tile.H), tl.float32)
    weight = cell.w1 + first * cell.w1_output_stride
    return product(total, left, weight, cell.w1_output_stride, cell.w1_input_stride, units, cell.hidden, rows.dim, tile)


@triton.jit
def _second_layer(total, h, cell, rows, units, tile):
    """total + h W2^T."""
    w2 = matrix(cell.w2, cell.w2_output_stride, cell.w2_input_stride, rows.cols, units, rows.dim, cell.hidden)
    return tl.dot(h, w2, total, input_precision=tile.PRECISION)


@triton.jit
def _biased(a, cell, first, units):
    if cell.b1 is not None:
        a += tl.load(cell.b1 + first + units, mask=units < cell.hidden, other=0.0).to(tl.float32)[None, :]
    return a


@triton.jit
def mlp_map(cell, rows, tile):
    x = state_of(rows, rows.live) + row_constants(cell.u, rows, rows.dim, 0)
    _keep_factor(x, rows)
    o = tl.zeros((tile.R, tile.C), tl.float32)
    for start in range(0, cell.hidden, tile.H):
        units = start + tl.arange(0, tile.H)
        h = _biased(_first_layer(cell, rows.factor, rows, 0, units, tile), cell, 0, units)
        if cell.ACTIVATION == SWIGLU:
            value = _first_layer(cell, rows.factor, rows, cell.hidden, units, tile)
            h = h * sigmoid(h) * _biased(value, cell, cell.hidden, units)
        else:
            h = activate(h, units, cell.hidden, 0, cell.ACTIVATION)
        o = _second_layer(o, h, cell, rows, units, tile)
    if cell.b2 is not None:
        o += column_constants(cell.b2, rows)
    z = state_of(rows, rows.live)
    o += cell.skip * (z + row_constants(cell.u, rows, rows.dim, 0))
    f = _normalise(o, rows, cell.norm_eps, cell.NORM)
    if cell.leak is not None:
        f += column_constants(cell.leak, rows) * z
    return f


@triton.jit
def mlp_tangent_map(cell, rows, tile):
    o = tl.zeros((tile.R, tile.C), tl.float32)
    width = cell.hidden * (2 if cell.GATED else 1)
    for start in range(0, cell.hidden, tile.H):
        units = start + tl.arange(0, tile.H)
        k = _first_layer(cell, rows.state, rows, 0, units, tile)
        s = k * _hidden_constants(cell.q, rows, width, 0, units, cell.hidden)
        if cell.GATED:
            k = _first_layer(cell, rows.state, rows, cell.hidden, units, tile)
            s += k * _hidden_constants(cell.q, rows, width, cell.hidden, units, cell.hidden)
        o = _second_layer(o, s, cell, rows, units, tile)
    y = state_of(rows, rows.live)
    f = _through_norm(o + cell.skip * y, cell, rows) + row_constants(cell.v, rows, rows.dim, 0)
    if cell.leak is not None:
        f += column_constants(cell.leak, rows) * y
    return f


@triton.jit
def _times_w1(total, s, cell, rows, first, units, tile):
    """total + s W1 for the hidden units first + units."""
    weight = cell.w1 + first * cell.w1_output_stride
    w1 = matrix(weight, cell.w1_input_stride, cell.w1_output_stride, rows.cols, units, rows.dim, cell.hidden)
    return tl.dot(s, w1, total, input_precision=tile.PRECISION)


@triton.jit
def mlp_adjoint_map(cell, rows, tile):
    w = state_of(rows, rows.live)
    t = _through_norm(w, cell, rows)
    _keep_factor(t, rows)
    f = row_constants(cell.v, rows, rows.dim, 0) + cell.skip * t
    if cell.leak is not None:
        f += column_constants(cell.leak, rows) * w
    width = cell.hidden * (2 if cell.GATED else 1)
    for start in range(0, cell.hidden, tile.H):
        units = start + tl.arange(0, tile.H)
        r = tl.zeros((tile.R, tile.H), tl.float32)
        r = product(
            r, rows.factor, cell.w2, cell.w2_input_stride, cell.w2_output_stride, units, cell.hidden, rows.dim, tile
        )
        s = r * _hidden_constants(cell.q, rows, width, 0, units, cell.hidden)
        f = _times_w1(f, s, cell, rows, 0, units, tile)
        if cell.GATED:
            s = r * _hidden_constants(cell.q, rows, width, cell.hidden, units, cell.hidden)
            f = _times_w1(f, s, cell, rows, cell.hidden, units, tile)
    return f
