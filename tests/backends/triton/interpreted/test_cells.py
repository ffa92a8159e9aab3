"""The whole solves of the MLP and gated cells and of their derivatives, against the reference."""

import pytest
import torch
from solving import ANDERSON, AUTO, PICARD, Case, agree, contraction, gated, normal, tail

from attractor_kernels.backends.reference.activations import CODES, SWIGLU


def uniform(*shape):
    return torch.rand(shape, dtype=torch.float64)


def mlp(rows, dim, hidden, activation=1, norm=0, skip=0.2, leak=True, bias=True):
    width = 2 * hidden if activation == SWIGLU else hidden
    tensors = (
        normal(rows, dim),
        normal(rows, dim),
        contraction(width, dim, 0.6),
        normal(width, scale=0.1) if bias else None,
        contraction(dim, hidden, 0.6),
        normal(dim, scale=0.1) if bias else None,
        0.1 * uniform(dim) if leak else None,
    )
    return Case("solve_mlp", tensors, (skip, norm, 0.5, activation))


def mlp_linear(name, rows, dim, hidden, gated, norm):
    width = 2 * hidden if gated else hidden
    tensors = (
        normal(rows, dim),
        normal(rows, dim),
        0.5 * uniform(rows, width),
        normal(rows, dim, scale=0.3),
        uniform(rows),
        contraction(width, dim, 0.6),
        contraction(dim, hidden, 0.6),
        0.1 * uniform(dim),
    )
    return Case(name, tensors, (0.2, norm))


def check(case, solver=PICARD, **options):
    agree(case.triton(tail(solver, **options)), case.reference(tail(solver, **options)))


@pytest.mark.parametrize("activation", [CODES["gelu"], CODES["relu2"], SWIGLU])
@pytest.mark.parametrize("norm", [0, 1, 2])
def test_mlp(activation, norm):
    check(mlp(3, 13, 21, activation, norm), max_steps=5)


def test_mlp_without_its_options():
    check(mlp(2, 5, 7, skip=0.0, leak=False, bias=False), ANDERSON)


@pytest.mark.parametrize(("dim", "hidden"), [(1, 1), (17, 70), (128, 33)])
def test_mlp_sizes(dim, hidden):
    check(mlp(2, dim, hidden, SWIGLU, norm=2), max_steps=4)


@pytest.mark.parametrize("name", ["solve_mlp_adjoint", "solve_mlp_tangent"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("norm", [0, 1, 2])
def test_mlp_derivatives(name, gated, norm):
    check(mlp_linear(name, 3, 13, 37, gated, norm), max_steps=5)


def test_gated():
    check(gated(3, 13), AUTO)


@pytest.mark.parametrize("name", ["solve_gated_adjoint", "solve_gated_tangent"])
@pytest.mark.parametrize("dim", [1, 13, 40])
def test_gated_derivatives(name, dim):
    tensors = (normal(3, dim), normal(3, dim), normal(3, 2 * dim, scale=0.4), 0.5 * uniform(3, dim))
    check(Case(name, (*tensors, contraction(2 * dim, dim, 0.7))), max_steps=5)
