"""The parts of the plain torch loop, against independent forms of what they compute."""

import itertools

import numpy as np
import pytest
import torch

import attractor_kernels as ak
from attractor_kernels.backends.reference import activations, gated, mlp, stopping
from attractor_kernels.backends.reference.small_solve import small_solve


def ridge_solution(gram, rhs, ridge):
    return np.linalg.solve(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)), rhs)


@pytest.mark.parametrize("ridge", [0.0, 1e-8, 1e-2])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_small_solve(ridge, scale):
    columns = scale * torch.randn(6, 9, 4, dtype=torch.float64)
    g = scale * torch.randn(6, 9, dtype=torch.float64)
    gram, rhs = columns.mT @ columns, (columns.mT @ g.unsqueeze(-1)).squeeze(-1)
    gamma, usable = small_solve(gram, rhs, torch.ones(6, 4, dtype=torch.bool), ridge, 1e-13)
    assert usable.all()
    for k in range(6):
        np.testing.assert_allclose(gamma[k].numpy(), ridge_solution(gram[k].numpy(), rhs[k].numpy(), ridge), rtol=1e-9)


def test_small_solve_uses_valid_columns_only():
    columns = torch.randn(3, 9, 4, dtype=torch.float64)
    g = torch.randn(3, 9, dtype=torch.float64)
    gram, rhs = columns.mT @ columns, (columns.mT @ g.unsqueeze(-1)).squeeze(-1)
    gram[1:, 0], gram[1:, :, 0], rhs[1:, 0] = torch.nan, torch.nan, torch.nan
    valid = torch.tensor([[True] * 4, [False] + [True] * 3, [False] * 4])
    gamma, usable = small_solve(gram, rhs, valid, 0.0, 1e-13)
    assert usable.tolist() == [True, True, False]
    assert gamma[1, 0] == 0 and (gamma[2] == 0).all()
    np.testing.assert_allclose(gamma[1, 1:], np.linalg.solve(gram[1, 1:, 1:], rhs[1, 1:]), rtol=1e-9)


def test_small_solve_drops_the_oldest_of_dependent_columns():
    columns = torch.randn(9, 3, dtype=torch.float64)
    columns[:, 0] = 2 * columns[:, 1] - columns[:, 2]
    g = torch.randn(9, dtype=torch.float64)
    gram, rhs = columns.mT @ columns, columns.mT @ g
    gamma, usable = small_solve(gram, rhs, torch.ones(3, dtype=torch.bool), 0.0, 1e-13)
    assert usable and gamma[0] == 0
    np.testing.assert_allclose(gamma[1:], np.linalg.solve(gram[1:, 1:], rhs[1:]), rtol=1e-9)


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_small_solve_never_fails(bad):
    gamma, usable = small_solve(
        torch.full((2, 2), bad, dtype=torch.float64), torch.ones(2).double(), torch.ones(2).bool(), 1e-8, 1e-13
    )
    assert not usable and (gamma == 0).all()


def judged(r2, f2, steps=1, **rule):
    rule = stopping.Rule(**{"rtol": 1e-3, "atol": 0.0, "max_steps": 50, "min_steps": 0, "eps": 1e-16, **rule})
    progress = stopping.Progress(1, torch.float64, torch.device("cpu"))
    for step, (a, b) in enumerate(itertools.zip_longest(r2, f2, fillvalue=f2[-1]), 1):
        status, _ = stopping.judge(progress, torch.tensor([a]).double(), torch.tensor([b]).double(), step, rule)
    return int(status), progress


def test_judge():
    assert judged([1.0], [1.0])[0] == stopping.RUNNING
    assert judged([1.0, 1e-7], [1.0])[0] == stopping.CONVERGED
    assert judged([1e-7], [1.0], min_steps=2)[0] == stopping.RUNNING
    assert judged([0.0], [0.0])[0] == stopping.CONVERGED
    assert judged([1.0, float("nan")], [1.0])[0] == stopping.NONFINITE
    assert judged([1.0], [float("inf")])[0] == stopping.NONFINITE
    assert judged([1.0, 1.01e8], [1.0])[0] == stopping.DIVERGED
    assert judged([1.0, 0.99e8], [1.0])[0] == stopping.RUNNING
    assert judged([1.0, 1.0], [1.0], max_steps=2)[0] == stopping.MAX_STEPS
    assert judged([1e-4], [1.0], rtol=0.0, atol=2e-2)[0] == stopping.CONVERGED
    assert judged([2.5e-33] * 11, [1.0], rtol=0.0)[0] == stopping.STAGNATED
    assert judged([2.5e-33] * 10, [1.0], rtol=0.0)[0] == stopping.RUNNING
    assert judged([1e-3] * 20, [1.0], rtol=0.0)[0] == stopping.RUNNING


def test_judge_keeps_the_best():
    _, progress = judged([4.0, 1.0, 2.0], [1.0])
    assert progress.best_step.tolist() == [2] and progress.best_r2.tolist() == [1.0]


@pytest.mark.parametrize("code", range(9))
def test_activation_derivatives(code):
    a = torch.linspace(-4.03, 4.01, 41, dtype=torch.float64).requires_grad_()  # no kink among the points
    (expected,) = torch.autograd.grad(activations.activate(code, a, 20).sum(), a)
    torch.testing.assert_close(activations.derivative(code, a, 20), expected, rtol=1e-12, atol=1e-14)


def test_softplus_far_out():
    a = torch.tensor([-40.0, 0.0, 21.0, 800.0], dtype=torch.float64)
    expected = torch.tensor([np.log1p(np.exp(-40.0)), np.log(2.0), 21 + np.log1p(np.exp(-21.0)), 800.0]).double()
    torch.testing.assert_close(activations.activate(activations.SOFTPLUS, a), expected, rtol=1e-15, atol=0)


def times_jacobian(f, z, y):
    """J y, from reverse mode alone."""
    return torch.einsum("abcd,cd->ab", torch.autograd.functional.jacobian(f, z), y)


@pytest.mark.parametrize("norm", [mlp.NONE, mlp.LAYER, mlp.RMS])
@pytest.mark.parametrize("activation", [activations.TANH, activations.SWIGLU])
def test_mlp_adjoint_and_tangent(norm, activation):
    """Against torch's own derivatives of the forward map."""
    batch, dim, hidden = 3, 4, 5
    width = 2 * hidden if activation == activations.SWIGLU else hidden
    shapes = [(batch, dim), (batch, dim), (width, dim), (width,), (dim, hidden), (dim,), (dim,)]
    z, u, w1, b1, w2, b2, leak = tensors = [torch.randn(s, dtype=torch.float64) for s in shapes]
    constants = (0.7, norm, 1e-3, activation)
    w = torch.randn(batch, dim, dtype=torch.float64)

    leaves = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(mlp.forward(*leaves, *constants), leaves, w)
    at = mlp.linearise(z, u, w1, b1, w2, b2, *constants)
    product = mlp.adjoint(w, at.q, at.n, at.rinv, w1, w2, leak, 0.7, norm)
    torch.testing.assert_close(product, expected[0])
    for got, want in zip(mlp.parameter_gradients((True,) * 6, w, z, at, w1, w2, 0.7, norm), expected[1:], strict=True):
        torch.testing.assert_close(got, want)
    tangent = times_jacobian(lambda z: mlp.forward(z, *tensors[1:], *constants), z, w)
    torch.testing.assert_close(mlp.tangent(w, at.q, at.n, at.rinv, w1, w2, leak, 0.7, norm), tangent)


def test_gated_adjoint_and_tangent():
    z, u = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    weight, w = torch.randn(8, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    q, c = gated.linearise(z, u, weight)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(gated.forward(leaf, u, weight), leaf, w)
    torch.testing.assert_close(gated.adjoint(w, q, c, weight), expected)
    tangent = times_jacobian(lambda z: gated.forward(z, u, weight), z, w)
    torch.testing.assert_close(gated.tangent(w, q, c, weight), tangent)


def test_broyden_restarts_when_its_memory_is_full():
    """A history shorter than the solve still converges."""
    matrix = torch.diag(torch.linspace(0.1, 0.98, 12, dtype=torch.float64))
    for history in (1, 2, 5):
        z, info = ak.fixed_point(
            lambda z: z @ matrix + 1,
            torch.zeros(2, 12, dtype=torch.float64),
            solver=ak.Broyden(history=history),
            rtol=1e-9,
            max_steps=2000,
        )
        assert info.converged.all()
        torch.testing.assert_close(z[0], 1 / (1 - matrix.diagonal()), rtol=1e-6, atol=0)
