"""The gated cell's map, its adjoint's and its tangent's: backends/reference/gated.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import sigmoid, tanh
from .changes import state_product
from .loop import row_constants, state_of
from .products import matrix


class Gated(NamedTuple):
    u: Any  # [B, 2D]
    weight: Any  # [2D, D]
    output_stride: Any
    input_stride: Any
    narrow: Any = None  # the weight in bfloat16, contiguous, for products of changes


class GatedLinear(NamedTuple):
    v: Any  # [B, D]
    q: Any  # [B, 2D]
    c: Any  # [B, D]
    weight: Any  # [2D, D]
    output_stride: Any
    input_stride: Any


@triton.jit
def _half(total, cell, narrow, rows, which, tile):
    """total + z W^T for the which-th half of the weight's rows; narrow: as in Gated."""
    first = which * rows.dim
    weight = cell.weight + first * cell.output_stride
    if narrow is not None:
        narrow = narrow + first * rows.dim
    return state_product(total, rows, which, weight, cell.output_stride, cell.input_stride, narrow, tile)


@triton.jit
def gated_map(cell, rows, tile):
    gate = _half(row_constants(cell.u, rows, 2 * rows.dim, 0), cell, cell.narrow, rows, 0, tile)
    candidate = _half(row_constants(cell.u, rows, 2 * rows.dim, rows.dim), cell, cell.narrow, rows, 1, tile)
    z = state_of(rows, rows.live)
    return z + sigmoid(gate) * (tanh(candidate) - z)


@triton.jit
def gated_tangent_map(cell, rows, tile):
    zero = tl.zeros((tile.R, tile.C), tl.float32)
    f = _half(zero, cell, None, rows, 0, tile) * row_constants(cell.q, rows, 2 * rows.dim, 0)
    f += _half(zero, cell, None, rows, 1, tile) * row_constants(cell.q, rows, 2 * rows.dim, rows.dim)
    f += row_constants(cell.v, rows, rows.dim, 0)  # after the products: during them registers are dear
    return f + row_constants(cell.c, rows, rows.dim, 0) * state_of(rows, rows.live)


@triton.jit
def gated_adjoint_map(cell, rows, tile):
    f = row_constants(cell.v, rows, rows.dim, 0) + row_constants(cell.c, rows, rows.dim, 0) * state_of(rows, rows.live)
    for first in range(0, 2 * rows.dim, tile.K):
        outputs = first + tl.arange(0, tile.K)  # of the weight: inputs of this product
        unit = outputs % rows.dim
        real = outputs < 2 * rows.dim
        q_at = (cell.q + rows.index * (2 * rows.dim))[:, None] + outputs[None, :]
        q = tl.load(q_at, mask=rows.live[:, None] & real[None, :], other=0.0).to(tl.float32)
        w = tl.load(rows.state[:, None] + unit[None, :])
        weight = matrix(cell.weight, cell.input_stride, cell.output_stride, rows.cols, outputs, rows.dim, 2 * rows.dim)
        f = tl.dot(q * w, weight, f, input_precision=tile.PRECISION)
    return f
