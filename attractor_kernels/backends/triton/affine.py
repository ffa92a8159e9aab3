"""The affine cell's map, f = leak * z + scale * phi(z W^T + u), and so its adjoint's: backends/reference/affine.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl  # noqa: F401 (the interpreter looks for it here)

from .activations import activate
from .changes import state_product
from .loop import column_constants, row_constants, state_of


class Affine(NamedTuple):
    u: Any  # [B, D]
    weight: Any  # [D, D]
    output_stride: Any
    input_stride: Any
    leak: Any  # [D] or None
    scale: Any  # [B, D] or None
    pieces: Any
    ACTIVATION: Any
    narrow: Any = None  # the weight in bfloat16, contiguous, for products of changes


@triton.jit
def affine_map(cell, rows, tile):
    a = row_constants(cell.u, rows, rows.dim, 0)
    a = state_product(a, rows, 0, cell.weight, cell.output_stride, cell.input_stride, cell.narrow, tile)
    f = activate(a, rows.cols, rows.dim, cell.pieces, cell.ACTIVATION)
    if cell.scale is not None:
        f = row_constants(cell.scale, rows, rows.dim, 0) * f
    if cell.leak is not None:
        f += column_constants(cell.leak, rows) * state_of(rows, rows.live)
    return f
