"""Maps whose fixed points are known (NUMERICS: closed forms and published histories, 5 to 8)."""

import itertools
import math

import numpy as np
import pytest
import torch
from maps import BACKENDS, CLOSE, FLOATS, HALVES, SOLVERS, TIGHT, linear, rotation14, true_residual
from oracle import anderson, first_below, picard

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


DOTTIE = 0.7390851332151607  # z = cos z
OMEGA = 0.5671432904097838  # z = exp(-z)


def solve(f, z0, solver, backend, max_steps=200, **options):
    options.setdefault("rtol", TIGHT[z0.dtype])
    return ak.fixed_point(f, z0, solver=solver, backend=backend, max_steps=max_steps, **options)


def assert_solved(z, info, expected, dtype):
    assert info.converged.all(), info.status
    np.testing.assert_allclose(z.double().numpy(), expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@every_solver
@every_dtype
def test_cosine(backend, solver, dtype):
    """At pi / 2 the slope is -1: half a Picard step removes what a whole one only reflects."""
    if isinstance(solver, ak.Picard):
        solver = ak.Picard(0.5)
    theta = torch.tensor([[0.0], [math.pi / 2]], dtype=dtype)
    z, info = solve(lambda z: torch.cos(z) + theta, torch.ones(2, 1, dtype=dtype), solver, backend)
    assert_solved(z[:, 0], info, [DOTTIE, math.pi / 2], dtype)


@floats
def test_rotation_needs_anderson(backend, dtype):
    """Seven plane rotations: the Picard residual never shrinks; ten differences of fourteen still get there."""
    matrix, shift = rotation14(dtype)
    f, z0 = linear(matrix, shift), torch.zeros(1, 14, dtype=dtype)
    z, info = solve(f, z0, ak.Anderson(10), backend, max_steps=100, rtol=1e-3)
    assert info.converged.all()
    assert true_residual(f, z).item() <= 1.001e-3
    _, info = solve(f, z0, ak.Picard(), backend, max_steps=100, rtol=1e-3)
    assert info.status.tolist() == [ak.Status.MAX_STEPS]
    z, info = solve(f, z0, ak.Auto(history=10), backend, max_steps=150, rtol=1e-3)
    assert info.converged.all()


@pytest.mark.parametrize("solver", [ak.Anderson(14, ridge=0.0), ak.Anderson(20, ridge=0.0)])
def test_rotation_is_exact_with_full_history(backend, solver):
    """A linear map in 14 dimensions: 14 differences span it, whatever longer history was asked for."""
    matrix, shift = rotation14(torch.float64)
    z, info = solve(linear(matrix, shift), torch.zeros(1, 14, dtype=torch.float64), solver, backend, rtol=1e-9)
    assert info.steps.item() <= 17
    expected = torch.linalg.solve(torch.eye(14, dtype=torch.float64) - matrix, shift)
    torch.testing.assert_close(z[0], expected, rtol=1e-8, atol=1e-8)


@floats
@pytest.mark.parametrize("solver", [ak.Anderson(5), ak.Auto()])
def test_slow_diagonal(backend, solver, dtype):
    """Contraction .999: thousands of Picard steps (counted by the oracle), about eight with a history of five."""
    rates, rtol = np.array([0.9, 0.99, 0.999]), 1e-5
    matrix, shift = torch.diag(torch.from_numpy(rates)).to(dtype), torch.ones(3, dtype=dtype)
    z0 = torch.zeros(1, 3, dtype=dtype)
    z, info = solve(linear(matrix, shift), z0, solver, backend, rtol=rtol)
    assert info.converged.all()
    limit = 8 if isinstance(solver, ak.Anderson) else 12
    assert info.steps.item() <= limit
    # An error of up to 1 / (1 - .999) residuals.
    np.testing.assert_allclose(z[0].double().numpy(), 1 / (1 - rates), rtol=1.1e3 * rtol)

    iterates = picard(lambda x: rates * x + 1, np.zeros(3), 5000)
    relative = [np.linalg.norm(rates * x + 1 - x) / np.linalg.norm(rates * x + 1) for x in iterates]
    assert first_below(relative, rtol) > 4000
    _, info = solve(linear(matrix, shift), z0, ak.Picard(), backend, rtol=rtol, max_steps=1000)
    assert info.status.tolist() == [ak.Status.MAX_STEPS]
    assert info.residual.item() == pytest.approx(relative[999], rel=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", ["slow", "cosine", "tanh", "rotation"])
def test_relative_ridge_costs_no_steps(backend, kind, scale):
    """Float32 with the default ridge against an orthogonal factorisation, at three scales: within one step."""
    matrix, shift = rotation14(torch.float64)
    plain = {
        "slow": lambda x: x * torch.tensor([0.9, 0.99, 0.999], dtype=x.dtype) + 1,
        "cosine": lambda x: 0.8 * torch.cos(x) + torch.linspace(0, 1, 3, dtype=x.dtype),
        "tanh": lambda x: torch.tanh(x @ torch.tensor([[0.5, 0.4], [0.3, -0.6]], dtype=x.dtype)) / 1.5 + 0.1,
        "rotation": lambda x: 0.95 * x @ matrix.to(x.dtype).mT + shift.to(x.dtype),
    }[kind]
    size, rtol = {"slow": 3, "cosine": 3, "tanh": 2, "rotation": 14}[kind], 1e-4

    def f(x):
        return scale * plain(x / scale)

    def exact(x):
        return f(torch.from_numpy(x)).numpy()

    iterates = anderson(exact, np.zeros(size), 120, 5)
    relative = [np.linalg.norm(exact(x) - x) / np.linalg.norm(exact(x)) for x in iterates]
    _, info = solve(f, torch.zeros(1, size), ak.Anderson(5), backend, rtol=rtol)
    assert info.converged.all()
    assert abs(info.steps.item() - first_below(relative, rtol)) <= 1


@every_solver
@every_dtype
def test_tanh_map_with_several_fixed_points(backend, solver, dtype):
    """Which fixed point is reached depends on the solver, so the residual is what is asserted."""
    matrix = torch.tensor([[1.1, 0.4], [0.3, 0.8]], dtype=dtype)

    def f(y):
        return torch.tanh(y @ matrix.mT + 0.1) + y / 2

    # The first is a saddle to 16-bit rounding, so already a fixed point there.
    starts = [[0.2, -0.6], [1.0, 1.0], [-1.0, -1.0]]
    for start in starts[dtype in HALVES :]:
        z, info = solve(f, torch.tensor([start], dtype=dtype), solver, backend)
        assert info.converged.all()
        assert true_residual(f, z).item() <= 1.3 * TIGHT[dtype]


@floats
def test_tanh_map_from_its_saddle(backend, dtype):
    """(.2313, -.5957) is a fixed point: solved from there to the dtype's rounding, it stays there."""
    matrix = torch.tensor([[1.1, 0.4], [0.3, 0.8]], dtype=dtype)
    start = torch.tensor([[0.2313, -0.5957]], dtype=dtype)
    z, info = solve(lambda y: torch.tanh(y @ matrix.mT + 0.1) + y / 2, start, ak.Anderson(2), backend)
    assert info.converged.all()
    torch.testing.assert_close(z, start, rtol=0, atol=1e-4)


@every_solver
@every_dtype
def test_diagonal_map(backend, solver, dtype):
    matrix, shift = torch.diag(torch.tensor([0.7, 0.3], dtype=dtype)), torch.tensor([1.5, 3.2], dtype=dtype)
    z, info = solve(linear(matrix, shift), torch.zeros(1, 2, dtype=dtype), solver, backend)
    assert_solved(z[0], info, [5, 32 / 7], dtype)


@every_dtype
@pytest.mark.parametrize("solver", [ak.Anderson(4), ak.Anderson(1), ak.Auto(4), ak.Broyden(4)])
def test_one_dimension_clamps_the_history(backend, solver, dtype):
    z, info = solve(lambda z: torch.exp(-z), torch.ones(1, 1, dtype=dtype), solver, backend)
    assert_solved(z[0, 0], info, OMEGA, dtype)


def test_one_dimension_is_the_secant_method(backend):
    """Type II with one difference in one dimension: z - g (z - z') / (g - g'), whatever history was asked for."""
    seen = []

    def f(z):
        seen.append(z.item())
        return torch.exp(-z)

    solve(f, torch.ones(1, 1, dtype=torch.float64), ak.Anderson(4, ridge=0.0), backend, rtol=1e-13)
    points = [1.0, math.exp(-1)]
    for _ in range(3):
        a, b = points[-2:]
        ga, gb = math.exp(-a) - a, math.exp(-b) - b
        points.append(b - gb * (b - a) / (gb - ga))
    np.testing.assert_allclose(seen[:5], points, rtol=1e-9)


@every_solver
@floats
def test_power_method(backend, solver, dtype):
    q, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    eigenvalues = torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.2, -0.5, -1.0], dtype=torch.float64)
    matrix = ((q * eigenvalues) @ q.mT).to(dtype)

    def f(z):
        z = z @ matrix
        return z / z.norm(dim=-1, keepdim=True)

    z, info = solve(f, (q[:, 0] + 0.1).to(dtype)[None], solver, backend)
    assert info.converged.all()
    assert (z @ matrix @ z.mT).item() / (z @ z.mT).item() == pytest.approx(3.0, rel=CLOSE[dtype])
    assert abs((z[0].double() @ q[:, 0]).item()) / z.double().norm().item() == pytest.approx(1.0, abs=CLOSE[dtype])


@every_solver
@every_dtype
def test_babylonian_square_root(backend, solver, dtype):
    target = torch.tensor([[2.0], [3.0], [10.0]], dtype=dtype)
    z, info = solve(lambda z: (z + target / z) / 2, target.clone(), solver, backend)
    assert_solved(z, info, target.double().sqrt().numpy(), dtype)


@every_solver
@floats
def test_pagerank(backend, solver, dtype):
    links = (torch.rand(20, 20, dtype=torch.float64) < 0.2).double() + torch.eye(20, dtype=torch.float64)
    chain = 0.85 * (links / links.sum(1, keepdim=True)).mT
    jump = torch.full((20,), 0.15 / 20, dtype=torch.float64)
    expected = torch.linalg.solve(torch.eye(20, dtype=torch.float64) - chain, jump)
    matrix, shift = chain.to(dtype), jump.to(dtype)
    z, info = solve(linear(matrix, shift), torch.full((1, 20), 1 / 20, dtype=dtype), solver, backend)
    assert_solved(z[0], info, expected.numpy(), dtype)


@every_solver
@floats
def test_stationary_distribution(backend, solver, dtype):
    """I - P^T is singular: the start's total probability is kept, so the limit is the one distribution."""
    chain = torch.rand(6, 6, dtype=torch.float64) + 0.1
    chain = chain / chain.sum(1, keepdim=True)
    values, vectors = np.linalg.eig(chain.numpy().T)
    expected = vectors[:, np.argmax(values.real)].real
    z, info = solve(lambda z: z @ chain.to(dtype), torch.full((1, 6), 1 / 6, dtype=dtype), solver, backend)
    assert_solved(z[0], info, expected / expected.sum(), dtype)


def plrnn_fixed_points(leak, weight, shift):
    """Every fixed point of leak * z + relu(W z + h), with its stability, one linear region (2^D of them) at a time."""
    size, found = len(shift), []
    for pattern in itertools.product([0.0, 1.0], repeat=size):
        active = np.diag(pattern)
        jacobian = np.diag(leak) + active @ weight
        z = np.linalg.solve(np.eye(size) - jacobian, active @ shift)
        if all((weight @ z + shift > 0) == np.array(pattern, dtype=bool)):
            found.append((z, np.abs(np.linalg.eigvals(jacobian)).max()))
    return found


@floats
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(4), ak.Auto()])
def test_every_fixed_point_of_a_piecewise_linear_network(backend, solver, dtype):
    rng = np.random.default_rng(135)
    leak = np.array([0.3, 0.5, -0.2, 0.4])
    weight, shift = 0.9 * rng.standard_normal((4, 4)), rng.standard_normal(4)
    points = plrnn_fixed_points(leak, weight, shift)
    assert len(points) == 3
    exact = torch.from_numpy(np.stack([z for z, _ in points]))
    stable = np.array([radius < 1 for _, radius in points])

    def f(z):
        a = z @ torch.from_numpy(weight).to(z.dtype).mT + torch.from_numpy(shift).to(z.dtype)
        return torch.from_numpy(leak).to(z.dtype) * z + torch.relu(a)

    z, info = solve(f, exact.to(dtype), solver, backend)
    assert (info.steps == 1).all()
    torch.testing.assert_close(z.double(), exact, rtol=1e-6, atol=1e-6)

    near = exact[stable] + 1e-3
    z, info = solve(f, near.to(dtype), solver, backend, max_steps=500)
    assert info.converged.all()
    torch.testing.assert_close(z.double(), exact[stable], rtol=1e-4, atol=1e-4)
