"""The closed forms and edge cases that are cells, through the operators: one fused solve each."""

import math

import numpy as np
import pytest
import torch
from maps import BACKENDS, CLOSE, FLOATS, HALVES, TIGHT, assert_same_bits, rotation14
from test_closed_forms import plrnn_fixed_points
from torch.autograd import gradcheck, gradgradcheck

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
SOLVERS = {"picard": ak.Picard(), "anderson": ak.Anderson(), "auto": ak.Auto()}
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def affine(weight, activation="identity", leak=None):
    weight = torch.as_tensor(weight)
    cell = ak.nn.AffineCell(len(weight), 1, activation=activation, leak=leak, dtype=weight.dtype)
    cell.weight.data = weight
    return cell


def solve(cell, u, z0, solver, backend, **options):
    options = dict(rtol=TIGHT[z0.dtype], max_steps=200) | options
    with torch.no_grad():
        z, info = ak.fixed_point(cell.bind_injection(u), z0, solver=solver, backend=backend, **options)
    assert info.backend == backend
    return z, info


def assert_solved(z, info, expected):
    assert info.converged.all(), (info.status, info.residual)
    np.testing.assert_allclose(z.double().numpy(), expected, rtol=CLOSE[z.dtype], atol=CLOSE[z.dtype])


@every_solver
@every_dtype
def test_diagonal_map(backend, solver, dtype):
    """diag(.7, .3) z + (1.5, 3.2) -> (5, 4.571428571)."""
    u = torch.tensor([[1.5, 3.2]], dtype=dtype)
    z, info = solve(affine(torch.diag(torch.tensor([0.7, 0.3], dtype=dtype))), u, torch.zeros_like(u), solver, backend)
    assert_solved(z[0], info, [5, 32 / 7])


@floats
@pytest.mark.parametrize("solver", [ak.Anderson(5), ak.Auto(5)], ids=["anderson", "auto"])
def test_slow_diagonal(backend, solver, dtype):
    """diag(.9, .99, .999): Anderson in about 8 steps where Picard needs 2996."""
    rates = torch.tensor([0.9, 0.99, 0.999], dtype=dtype)
    u = torch.ones(1, 3, dtype=dtype)
    z, info = solve(affine(torch.diag(rates)), u, torch.zeros_like(u), solver, backend, rtol=1e-5, max_steps=40)
    assert info.converged.all()
    assert info.steps.item() <= (10 if isinstance(solver, ak.Anderson) else 25)
    # A residual of 1e-5 leaves an error a thousand times as large where the rate is .999.
    torch.testing.assert_close(z.double(), 1 / (1 - rates.double())[None], rtol=2e-2, atol=0)
    _, info = solve(affine(torch.diag(rates)), u, torch.zeros_like(u), ak.Picard(), backend, rtol=1e-5, max_steps=40)
    assert (info.status == ak.Status.MAX_STEPS).all()


@floats
@pytest.mark.parametrize("solver", [ak.Anderson(10), ak.Auto(10)], ids=["anderson", "auto"])
def test_rotation_needs_anderson(backend, solver, dtype):
    matrix, shift = rotation14(dtype)
    z0 = torch.zeros(1, 14, dtype=dtype)
    z, info = solve(affine(matrix), shift[None], z0, solver, backend, rtol=1e-3, max_steps=150)
    assert info.converged.all()
    f = z.double() @ matrix.double().mT + shift.double()
    assert (f - z.double()).norm() <= 1.001e-3 * f.norm()


TANH_MATRIX = torch.tensor([[1.1, 0.4], [0.3, 0.8]], dtype=torch.float64)


@every_solver
@every_dtype
def test_tanh_map_with_several_fixed_points(backend, solver, dtype):
    """tanh(A z + .1) + z / 2 from three starts: the residual is what is asserted."""
    starts = torch.tensor([[0.2, -0.6], [1.0, 1.0], [-1.0, -1.0]], dtype=dtype)[dtype in HALVES :]
    cell = affine(TANH_MATRIX.to(dtype), "tanh", leak=0.5)
    z, info = solve(cell, torch.full_like(starts, 0.1), starts, solver, backend)
    assert info.converged.all()
    x = z.double()
    f = torch.tanh(x @ cell.weight.double().mT + torch.full_like(starts, 0.1).double()) + x / 2
    # A 16-bit state is solved in float32 and rounded at the end.
    rounding = torch.finfo(dtype).eps if dtype in HALVES else 0.3 * TIGHT[dtype]
    assert ((f - x).norm(dim=-1) <= (TIGHT[dtype] + rounding) * f.norm(dim=-1)).all()


@every_solver
def test_tanh_map_derivatives(backend, solver):
    """Of the same map, first and second, at the two fixed points that attract."""
    z0 = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)

    def run(weight, leak, u):
        options = dict(activation="tanh", solver=solver, rtol=1e-13, max_steps=300)
        if backend == "cpu":
            return ak.ops.solve_affine(z0, u, weight, leak, **options).z
        with_leak = lambda z: torch.tanh(z @ weight.mT + u) + leak * z  # noqa: E731
        del options["activation"]
        return ak.fixed_point(with_leak, z0, backend=backend, **options)[0]

    leaves = (TANH_MATRIX.clone(), torch.full((2,), 0.5, dtype=torch.float64), torch.full_like(z0, 0.1))
    leaves = tuple(t.requires_grad_() for t in leaves)
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves, fast_mode=True)


@every_solver
@floats
def test_stationary_distribution(backend, solver, dtype):
    """I - P is singular: the start's total probability is kept, so the limit is the one distribution."""
    chain = torch.rand(6, 6, dtype=torch.float64) + 0.1
    chain = chain / chain.sum(1, keepdim=True)
    values, vectors = np.linalg.eig(chain.numpy().T)
    expected = vectors[:, np.argmax(values.real)].real
    z0 = torch.full((1, 6), 1 / 6, dtype=dtype)
    z, info = solve(affine(chain.mT.to(dtype).contiguous()), torch.zeros_like(z0), z0, solver, backend)
    assert_solved(z[0], info, expected / expected.sum())


@every_solver
@floats
def test_every_fixed_point_of_a_piecewise_linear_network(backend, solver, dtype):
    rng = np.random.default_rng(135)
    leak = np.array([0.3, 0.5, -0.2, 0.4])
    weight, shift = 0.9 * rng.standard_normal((4, 4)), rng.standard_normal(4)
    points = plrnn_fixed_points(leak, weight, shift)
    assert len(points) == 3
    exact = torch.from_numpy(np.stack([z for z, _ in points]))
    stable = np.array([radius < 1 for _, radius in points])
    u = torch.from_numpy(shift).to(dtype).expand(3, 4)
    for activation in ("relu", ak.nn.partial_relu(4)):
        cell = affine(torch.from_numpy(weight).to(dtype), activation, leak=torch.from_numpy(leak))
        z, info = solve(cell, u, exact.to(dtype), solver, backend)
        assert (info.steps == 1).all()
        torch.testing.assert_close(z.double(), exact, rtol=1e-6, atol=1e-6)
        z, info = solve(cell, u[stable], (exact[stable] + 1e-3).to(dtype), solver, backend, max_steps=500)
        assert info.converged.all()
        torch.testing.assert_close(z.double(), exact[stable], rtol=1e-4, atol=1e-4)


def constant_cells(dtype):
    """Every kind with weights of zero: f does not depend on z (the gated one halves the distance)."""
    affine_cell = ak.nn.AffineCell(5, 3, dtype=dtype)
    mlp = ak.nn.MLPCell(5, 3, hidden_dim=4, dtype=dtype)
    with torch.no_grad():
        affine_cell.weight.zero_()
        mlp.w1.zero_()
        mlp.w2.zero_()
        mlp.b2.fill_(0.75)
    return affine_cell, mlp


@every_solver
@every_dtype
@pytest.mark.parametrize("history", [1, 3])
def test_constant_map(backend, solver, dtype, history):
    """The second evaluation sees no change; with more history than there are entries, too."""
    if not isinstance(solver, ak.Picard):
        solver = type(solver)(history=history)
    for cell in constant_cells(dtype):
        x = torch.randn(4, 3).to(dtype)
        z0 = torch.ones(4, 5, dtype=dtype)
        with torch.no_grad():
            expected = cell(z0, x)
            z, info = ak.fixed_point(cell.bind(x), z0, solver=solver, rtol=TIGHT[dtype], backend=backend)
        assert (info.steps == 2).all() and info.converged.all()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(z, expected, rtol=2 * eps, atol=2 * eps)


@every_solver
@every_dtype
def test_identity_map(backend, solver, dtype):
    """Every state is a fixed point: the start comes back after one step, to the bit; min_steps changes nothing."""
    z0 = torch.randn(4, 5).to(dtype)
    for least in (0, 6):
        z, info = solve(affine(torch.eye(5, dtype=dtype)), torch.zeros_like(z0), z0, solver, backend, min_steps=least)
        assert_same_bits(z, z0)
        assert info.converged.all() and (info.residual == 0).all()
        assert (info.steps == max(1, least)).all()


@floats
@pytest.mark.parametrize("ridge", [0.0, 1e-8, 1e-2])
@pytest.mark.parametrize("history", [1, 2, 32])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kind", ["affine", "mlp", "gated"])
def test_histories_shorter_and_longer_than_the_state(backend, kind, size, history, ridge, dtype):
    generator = torch.Generator().manual_seed(size)
    make = {"affine": ak.nn.AffineCell, "mlp": ak.nn.MLPCell, "gated": ak.nn.GatedCell}[kind]
    cell = make(size, 2, dtype=dtype)
    x = torch.randn(7, 2, dtype=dtype, generator=generator)
    for solver in (ak.Anderson(history, ridge=ridge), ak.Auto(history, ridge=ridge)):
        with torch.no_grad():
            z0 = torch.zeros(7, size, dtype=dtype)
            z, info = ak.fixed_point(
                cell.bind(x), z0, solver=solver, rtol=10 * TIGHT[dtype], max_steps=200, backend=backend
            )
            f = cell.double()(z.double(), x.double())
            cell.to(dtype)
        assert info.converged.all(), (info.status, info.residual)
        assert ((f - z.double()).norm(dim=-1) <= 11 * TIGHT[dtype] * f.norm(dim=-1)).all()


@every_solver
@floats
@pytest.mark.parametrize("kind", ["affine", "mlp", "gated"])
def test_a_cotangent_that_is_not_finite_stays_in_its_row(backend, kind, solver, dtype):
    """NaN and Inf in one row of the loss's gradient: every other row's gradient keeps its value."""
    make = {"affine": ak.nn.AffineCell, "mlp": ak.nn.MLPCell, "gated": ak.nn.GatedCell}[kind]
    cell = make(6, 2, dtype=dtype)
    for p in cell.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        u = cell.inject(torch.randn(5, 2, dtype=dtype))
    v = torch.randn(5, 6, dtype=dtype)

    def gradient(v):
        leaf = u.clone().requires_grad_()
        z0 = torch.zeros(5, 6, dtype=dtype)
        z, info = ak.fixed_point(
            cell.bind_injection(leaf), z0, solver=solver, rtol=1e-5, max_steps=400, backend=backend
        )
        return *torch.autograd.grad(z, leaf, v), info

    clean, _ = gradient(v)
    for poison in (math.nan, math.inf):
        bad = v.clone()
        bad[3, 1] = poison
        with pytest.warns(ak.AdjointWarning, match="NONFINITE"):
            got, info = gradient(bad)
        others = [0, 1, 2, 4]
        assert_same_bits(got[others], clean[others])
        assert info.adjoint.status[3] == ak.Status.NONFINITE
        assert info.adjoint.converged[others].all()
