"""Operator `solve_affine`: the whole fixed-point solve of an affine cell in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.reference import affine
from ..backends.reference.activations import CODES, IDENTITY, PARTIAL_RELU, SWIGLU
from ..options import Auto, Solver, check_choice, check_int
from ._arguments import Tail, check_start, check_tensors, make_tail
from ._declare import NAMESPACE, Operator, SolveResult, call, in_functorch
from .affine_slope import affine_slope

ACTIVATIONS = tuple(name for name, code in CODES.items() if code != SWIGLU)


def _gradients(
    namespace: str,
    needs: tuple[bool, ...],  # of z0, u, weight, leak, scale
    v: Tensor,  # [B, D] cotangent of z
    z: Tensor,  # [B, D] the fixed point
    u: Tensor,
    weight: Tensor,
    leak: Tensor | None,
    scale: Tensor | None,
    activation: int,
    pieces: int,
    tail: Tail,
) -> tuple[tuple[Tensor | None, ...], SolveResult]:
    phi: Tensor | None = None
    if needs[4] or torch.is_grad_enabled() or in_functorch():
        phi, d = affine.slope(z, u, weight, scale, activation, pieces)
        start = d * v
    else:
        d, start = affine_slope(namespace, torch.addmm(u, z, weight.mT), v, scale, activation, pieces)
    solved = call(namespace, "solve_affine", start, v, weight.mT, leak, d, IDENTITY, 0, *tail)
    y = solved.z
    w = affine.adjoint(y, v, weight, leak) if needs[3] or needs[4] else None
    return (
        y if needs[1] else None,
        y.mT @ z if needs[2] else None,
        (w * z).sum(0) if needs[3] and w is not None else None,
        w * phi if needs[4] and w is not None and phi is not None else None,
    ), solved


OPERATOR = Operator(
    "solve_affine",
    "Tensor z0, Tensor u, Tensor weight, Tensor? leak, Tensor? scale",
    "int activation, int pieces",
    rows="z0 u scale",
    gradients=_gradients,
)


def solve_affine(
    z0: Tensor,
    u: Tensor,
    weight: Tensor,
    leak: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    activation: str = "tanh",
    pieces: int = 0,
    solver: Solver = Auto(),
    rtol: float = 1e-4,
    atol: float = 0.0,
    max_steps: int = 50,
    min_steps: int = 0,
    keep_best: bool = False,
    trace: bool = False,
    mixed: bool = False,
) -> SolveResult:
    """Solves z = leak * z + scale * phi(z weight^T + u), each row a problem of its own.

    Args:
        z0: [B, D], where the solve starts. Its gradient is zero.
        u: [B, D], what the input adds.
        weight: [D, D], any strides.
        leak: [D] or None (no leak term).
        scale: [B, D] or None (1). A differentiated solve is itself such a solve, with the identity.
        activation: "identity", "tanh", "relu", "sigmoid", "softplus", "gelu" (exact), "partial_relu", "silu", "relu2".
        pieces: with "partial_relu", how many units, the last ones, are rectified; the rest are linear.
        solver, rtol, atol, max_steps, min_steps, trace: as in `attractor_kernels.fixed_point`.
        keep_best: return the iterate with the lowest residual instead of the last one.
        mixed: permit products of differences in 8 or 16 bits, to the same true residual.

    All tensors share z0's dtype (float64 down to float16 and bfloat16, the latter solved in float32) and device.

    Returns:
        (z, steps, residual, status, trace): z [B, D] in z0's dtype, int32 [B], float32 [B], uint8 [B], and float32
        [max_steps, B] or, without trace, [0, B].

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.

    >>> import torch
    >>> result = solve_affine(torch.zeros(4, 3), torch.ones(4, 3), 0.5 * torch.eye(3))
    >>> bool((result.z - torch.tanh(0.5 * result.z + 1)).abs().max() < 1e-3)
    True
    """
    code = CODES[check_choice("activation", activation, ACTIVATIONS)]
    tail = make_tail(solver, rtol, atol, max_steps, min_steps, keep_best, trace, mixed)
    rows, dim = check_start(z0)
    check_tensors(z0, u=(u, (rows, dim)), weight=(weight, (dim, dim)), leak=(leak, (dim,)), scale=(scale, (rows, dim)))
    check_int("pieces", pieces, low=0, high=dim if code == PARTIAL_RELU else None)
    return call(NAMESPACE, OPERATOR.name, z0, u, weight, leak, scale, code, pieces, *tail)
