"""Operators `solve_mlp`, `solve_mlp_adjoint` and `solve_mlp_tangent`: fixed points of an MLP cell and derivatives.

The adjoint operator solves w = A w + v, the tangent operator y = T y + v (A, T: backends/reference/mlp.py). Each is
the other's derivative, so derivatives of every order stay within the three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..backends.reference import mlp
from ..backends.reference.activations import CODES, PARTIAL_RELU, SWIGLU
from ..options import Auto, Solver, check_choice, check_float, check_number
from ._arguments import Tail, check_start, check_tensors, make_tail
from ._declare import NAMESPACE, Operator, SolveResult, call

ACTIVATIONS = tuple(name for name, code in CODES.items() if code != PARTIAL_RELU)


def _gradients(
    namespace: str,
    needs: tuple[bool, ...],  # of z0, u, w1, b1, w2, b2, leak
    v: Tensor,  # [B, D] cotangent of z
    z: Tensor,  # [B, D] the fixed point
    u: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    leak: Tensor | None,
    skip: float,
    norm: int,
    norm_eps: float,
    activation: int,
    tail: Tail,
) -> tuple[tuple[Tensor | None, ...], SolveResult]:
    at = mlp.linearise(z, u, w1, b1, w2, b2, skip, norm, norm_eps, activation)
    solved = call(namespace, "solve_mlp_adjoint", v, v, at.q, at.n, at.rinv, w1, w2, leak, skip, norm, *tail)
    return mlp.parameter_gradients(needs[1:], solved.z, z, at, w1, w2, skip, norm), solved


def _linear_gradients(transposed: str) -> Callable[..., Any]:
    """The gradient of a linear solve, whose cotangent goes through the transposed one."""

    def gradients(
        namespace: str,
        needs: tuple[bool, ...],  # of z0, v, q, n, rinv, w1, w2, leak
        cotangent: Tensor,  # [B, D]
        solution: Tensor,  # [B, D]
        v: Tensor,
        q: Tensor,
        n: Tensor,
        rinv: Tensor,
        w1: Tensor,
        w2: Tensor,
        leak: Tensor | None,
        skip: float,
        norm: int,
        tail: Tail,
    ) -> tuple[tuple[Tensor | None, ...], SolveResult]:
        solved = call(namespace, transposed, cotangent, cotangent, q, n, rinv, w1, w2, leak, skip, norm, *tail)
        w, y = (solution, solved.z) if transposed == "solve_mlp_tangent" else (solved.z, solution)
        return (solved.z, *mlp.bilinear_gradients(w, y, q, n, rinv, w1, w2, skip, norm)), solved

    return gradients


OPERATOR = Operator(
    "solve_mlp",
    "Tensor z0, Tensor u, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? leak",
    "float skip, int norm, float norm_eps, int activation",
    rows="z0 u",
    gradients=_gradients,
)
_LINEAR = (
    "Tensor z0, Tensor v, Tensor q, Tensor n, Tensor rinv, Tensor w1, Tensor w2, Tensor? leak",
    "float skip, int norm",
    "z0 v q n rinv",
)
ADJOINT = Operator("solve_mlp_adjoint", *_LINEAR, _linear_gradients("solve_mlp_tangent"))
TANGENT = Operator("solve_mlp_tangent", *_LINEAR, _linear_gradients("solve_mlp_adjoint"))


def solve_mlp(
    z0: Tensor,
    u: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None = None,
    leak: Tensor | None = None,
    *,
    skip: float = 0.0,
    norm: str = "none",
    norm_eps: float = 1e-5,
    activation: str = "relu",
    solver: Solver = Auto(),
    rtol: float = 1e-4,
    atol: float = 0.0,
    max_steps: int = 50,
    min_steps: int = 0,
    keep_best: bool = False,
    trace: bool = False,
    mixed: bool = False,
) -> SolveResult:
    """Solves z = leak * z + norm(skip * (z + u) + phi((z + u) w1^T + b1) w2^T + b2), each row a problem of its own.

    Args:
        z0: [B, D], where the solve starts. Its gradient is zero.
        u: [B, D], what the input adds.
        w1: [H, D], or [2H, D] with "swiglu", whose phi is silu(first half) * second half.
        b1: [H] ([2H] with "swiglu") or None.
        w2: [D, H].
        b2: [D] or None.
        leak: [D] or None (no leak term).
        skip: weight of the residual connection.
        norm: "none", "layer" or "rms", over D, without weights.
        norm_eps: added to the variance or mean square.
        activation: "identity", "tanh", "relu", "sigmoid", "softplus", "gelu" (exact), "silu", "relu2", "swiglu".
        solver, rtol, atol, max_steps, min_steps, trace: as in `attractor_kernels.fixed_point`.
        keep_best, mixed: as in `solve_affine`.

    Dtypes, devices, returned values and errors are as in `solve_affine`.

    >>> import torch
    >>> w1, w2 = 0.5 * torch.eye(3), 0.5 * torch.eye(3)
    >>> result = solve_mlp(torch.zeros(2, 3), torch.ones(2, 3), w1, None, w2)
    >>> torch.allclose(result.z, torch.full((2, 3), 1 / 3), atol=1e-3)
    True
    """
    code = CODES[check_choice("activation", activation, ACTIVATIONS)]
    norm_code = mlp.NORMS[check_choice("norm", norm, tuple(mlp.NORMS))]
    tail = make_tail(solver, rtol, atol, max_steps, min_steps, keep_best, trace, mixed)
    rows, dim = check_start(z0)
    hidden = w2.shape[-1] if isinstance(w2, Tensor) and w2.dim() == 2 else 0
    width = 2 * hidden if code == SWIGLU else hidden
    check_tensors(
        z0,
        u=(u, (rows, dim)),
        w2=(w2, (dim, hidden)),
        w1=(w1, (width, dim)),
        b1=(b1, (width,)),
        b2=(b2, (dim,)),
        leak=(leak, (dim,)),
    )
    constants = (check_number("skip", skip), norm_code, check_float("norm_eps", norm_eps), code)
    return call(NAMESPACE, OPERATOR.name, z0, u, w1, b1, w2, b2, leak, *constants, *tail)
