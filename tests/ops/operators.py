"""A small problem for every solving operator, by name, whose map contracts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

B, D, H = 3, 4, 5
NAMESPACES = ("attractor_kernels", "attractor_kernels_reference")
PICARD = (0, 1, 1.0, 0.0, 1e-13, 0.0, 300, 0, False, False, False)


def leaf(*shape: int, scale: float = 0.3) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()


def problem(name: str) -> tuple[Any, ...]:
    """Arguments of an operator, float64, before the solver's; a second word names a form."""
    z0 = torch.zeros(B, D, dtype=torch.float64)
    leak = (0.2 * torch.rand(D, dtype=torch.float64)).requires_grad_()
    rinv = torch.rand(B, dtype=torch.float64).requires_grad_()
    c = (0.5 * torch.rand(B, D, dtype=torch.float64)).requires_grad_()
    weight = leaf(D, D, scale=0.2)
    if name == "solve_affine":
        return (z0, leaf(B, D), weight, leak, None, 1, 0)
    if name == "solve_affine scaled":
        return (z0, leaf(B, D), weight, leak, leaf(B, D), 0, 0)
    if name == "solve_affine pieces":
        return (z0, leaf(B, D), weight, None, None, 6, 2)
    if name == "solve_mlp":
        return (z0, leaf(B, D), leaf(2 * H, D), leaf(2 * H), leaf(D, H), leaf(D), leak, 0.2, 2, 0.5, 9)
    if name in ("solve_mlp_adjoint", "solve_mlp_tangent"):
        q = leaf(B, 2 * H, scale=0.2)
        return (z0, leaf(B, D), q, leaf(B, D), rinv, leaf(2 * H, D), leaf(D, H), leak, 0.2, 1)
    if name == "solve_gated":
        return (z0, leaf(B, 2 * D), leaf(2 * D, D))
    assert name in ("solve_gated_adjoint", "solve_gated_tangent")
    return (z0, leaf(B, D), leaf(B, 2 * D), c, leaf(2 * D, D))


PROBLEMS = [
    "solve_affine",
    "solve_affine scaled",
    "solve_affine pieces",
    "solve_mlp",
    "solve_mlp_adjoint",
    "solve_mlp_tangent",
    "solve_gated",
    "solve_gated_adjoint",
    "solve_gated_tangent",
]


def operator(namespace: str, name: str) -> Any:
    return getattr(getattr(torch.ops, namespace), name.split()[0]).default
