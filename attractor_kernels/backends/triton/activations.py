"""The activations of the cells in Triton, float32; NaN passes through each."""

from __future__ import annotations

import triton
import triton.language as tl

from ..reference import activations as codes

IDENTITY = tl.constexpr(codes.IDENTITY)
TANH = tl.constexpr(codes.TANH)
RELU = tl.constexpr(codes.RELU)
SIGMOID = tl.constexpr(codes.SIGMOID)
SOFTPLUS = tl.constexpr(codes.SOFTPLUS)
GELU = tl.constexpr(codes.GELU)
PARTIAL_RELU = tl.constexpr(codes.PARTIAL_RELU)
SILU = tl.constexpr(codes.SILU)
RELU2 = tl.constexpr(codes.RELU2)
SWIGLU = tl.constexpr(codes.SWIGLU)


@triton.jit
def tanh(x):
    """(1 - e^-2|x|) / (1 + e^-2|x|), and its Taylor series where that would cancel."""
    y = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - y) / (1.0 + y)
    x2 = x * x
    # Through x^11; the first omitted term is below 3e-8 of the result at 0.35.
    series = -1382.0 / 155925
    series = series * x2 + 62.0 / 2835
    series = series * x2 - 17.0 / 315
    series = series * x2 + 2.0 / 15
    series = series * x2 - 1.0 / 3
    small = x + x * x2 * series
    return tl.where(tl.abs(x) < 0.35, small, tl.where(x < 0, -large, large))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def relu(x):
    return tl.where(x < 0, 0.0, x)  # tl.maximum would drop NaN


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(y), y = e^-|x|, and log1p(y) = 2 atanh(y / (2 + y))."""
    y = tl.exp(-tl.abs(x))
    s = y / (2.0 + y)
    s2 = s * s
    series = 1.0 / 15 * s2 + 1.0 / 13
    for k in tl.static_range(5):
        series = series * s2 + 1.0 / (11 - 2 * k)
    return relu(x) + 2.0 * (s + s * s2 * series)


@triton.jit
def activate(x, cols, width, pieces, KIND: tl.constexpr):
    """phi(x) [R, C]; of partial_relu the last `pieces` of `width` units are rectified."""
    if KIND == TANH:
        return tanh(x)
    elif KIND == RELU:
        return relu(x)
    elif KIND == SIGMOID:
        return sigmoid(x)
    elif KIND == SOFTPLUS:
        return softplus(x)
    elif KIND == GELU:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == PARTIAL_RELU:
        return tl.where((cols >= width - pieces)[None, :], relu(x), x)
    elif KIND == SILU:
        return x * sigmoid(x)
    elif KIND == RELU2:
        r = relu(x)
        return r * r
    else:
        return x
