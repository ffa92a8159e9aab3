"""Operators `solve_gated`, `solve_gated_adjoint` and `solve_gated_tangent`: fixed points of a gated cell.

The adjoint operator solves w = A w + v, the tangent operator y = T y + v (A, T: backends/reference/gated.py). Each is
the other's derivative, so derivatives of every order stay within the three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends.reference import gated
from ..options import Auto, Solver
from ._arguments import Tail, check_start, check_tensors, make_tail
from ._declare import NAMESPACE, Operator, SolveResult, call


def _gradients(
    namespace: str,
    needs: tuple[bool, ...],  # of z0, u, weight
    v: Tensor,  # [B, D] cotangent of z
    z: Tensor,  # [B, D] the fixed point
    u: Tensor,
    weight: Tensor,
    tail: Tail,
) -> tuple[tuple[Tensor | None, ...], SolveResult]:
    q, c = gated.linearise(z, u, weight)
    solved = call(namespace, "solve_gated_adjoint", v, v, q, c, weight, *tail)
    grad_u = q * torch.cat([solved.z, solved.z], -1)
    return (grad_u, grad_u.mT @ z if needs[2] else None), solved


def _linear_gradients(transposed: str) -> Callable[..., Any]:
    """The gradient of a linear solve, whose cotangent goes through the transposed one."""

    def gradients(
        namespace: str,
        needs: tuple[bool, ...],  # of z0, v, q, c, weight
        cotangent: Tensor,  # [B, D]
        solution: Tensor,  # [B, D]
        v: Tensor,
        q: Tensor,
        c: Tensor,
        weight: Tensor,
        tail: Tail,
    ) -> tuple[tuple[Tensor | None, ...], SolveResult]:
        solved = call(namespace, transposed, cotangent, cotangent, q, c, weight, *tail)
        w, y = (solution, solved.z) if transposed == "solve_gated_tangent" else (solved.z, solution)
        return (solved.z, *gated.bilinear_gradients(w, y, q, c, weight)), solved

    return gradients


OPERATOR = Operator("solve_gated", "Tensor z0, Tensor u, Tensor weight", "", "z0 u", _gradients)
_LINEAR = ("Tensor z0, Tensor v, Tensor q, Tensor c, Tensor weight", "", "z0 v q c")
ADJOINT = Operator("solve_gated_adjoint", *_LINEAR, _linear_gradients("solve_gated_tangent"))
TANGENT = Operator("solve_gated_tangent", *_LINEAR, _linear_gradients("solve_gated_adjoint"))


def solve_gated(
    z0: Tensor,
    u: Tensor,
    weight: Tensor,
    *,
    solver: Solver = Auto(),
    rtol: float = 1e-4,
    atol: float = 0.0,
    max_steps: int = 50,
    min_steps: int = 0,
    keep_best: bool = False,
    trace: bool = False,
    mixed: bool = False,
) -> SolveResult:
    """Solves z = (1 - s) * z + s * tanh(a_c), s = sigmoid(a_s), (a_s, a_c) = z weight^T + u; each row a problem.

    Args:
        z0: [B, D], where the solve starts. Its gradient is zero.
        u: [B, 2D], what the input adds: D for the gate, then D for the candidate.
        weight: [2D, D], the gate's rows, then the candidate's.
        solver, rtol, atol, max_steps, min_steps, trace: as in `attractor_kernels.fixed_point`.
        keep_best, mixed: as in `solve_affine`.

    Dtypes, devices, returned values and errors are as in `solve_affine`.

    >>> result = solve_gated(torch.zeros(2, 3), torch.ones(2, 6), torch.zeros(6, 3))
    >>> torch.allclose(result.z, torch.ones(2, 3).tanh(), atol=1e-3)
    True
    """
    tail = make_tail(solver, rtol, atol, max_steps, min_steps, keep_best, trace, mixed)
    rows, dim = check_start(z0)
    check_tensors(z0, u=(u, (rows, 2 * dim)), weight=(weight, (2 * dim, dim)))
    return call(NAMESPACE, OPERATOR.name, z0, u, weight, *tail)
