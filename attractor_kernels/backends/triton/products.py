"""Products of a tile of rows with weights that are streamed through shared memory."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matrix(
    weight, output_stride, input_stride, outputs, inputs, outputs_end, inputs_end, TYPE: tl.constexpr = tl.float32
):
    """weight[outputs, inputs] transposed, as TYPE [inputs, outputs], zero past the ends."""
    at = weight + inputs[:, None] * input_stride + outputs[None, :] * output_stride
    mask = (inputs[:, None] < inputs_end) & (outputs[None, :] < outputs_end)
    return tl.load(at, mask=mask, other=0.0).to(TYPE)


@triton.jit
def product(
    total,
    left,
    weight,
    output_stride,
    input_stride,
    outputs,
    outputs_end,
    inputs_end,
    tile,
    TYPE: tl.constexpr = tl.float32,
):
    """total + x W^T for the rows x that `left` [R] points to (scratch of C entries, zero past inputs_end).

    TYPE: of the numbers that are multiplied; sums are float32.
    """
    for first in range(0, inputs_end, tile.K):
        inputs = first + tl.arange(0, tile.K)
        x = tl.load(left[:, None] + inputs[None, :]).to(TYPE)
        w = matrix(weight, output_stride, input_stride, outputs, inputs, outputs_end, inputs_end, TYPE)
        total = tl.dot(x, w, total, input_precision=tile.PRECISION)
    return total
