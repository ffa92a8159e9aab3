"""A problem's result never depends on the other problems (NUMERICS: batch, NaN)."""

import math

import pytest
import torch
from cells import KINDS, make_cell, solve_places
from maps import BACKENDS, FLOATS, HALVES, SOLVERS, assert_same_bits, family

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
# The promise of equal bits is the kernels'; one solver and one size are enough to see the reference's tolerance.
KERNELS = [name for name in BACKENDS if name != "reference"]
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)
fused_solvers = pytest.mark.parametrize(
    "solver", [ak.Picard(), ak.Anderson(), ak.Anderson(3, 0.8), ak.Auto()], ids=["picard", "anderson", "damped", "auto"]
)


def rows_at_rates(rates, dtype):
    """z -> rate * z + 1 per row and, so that several entries matter, rate / 2 on every second one."""
    rate = torch.tensor(rates, dtype=dtype)[:, None] * torch.tensor([1.0, 0.5], dtype=dtype).repeat(3)
    return lambda z, rows=slice(None): rate[rows] * z + 1


@every_solver
@floats
def test_fast_beside_slow(backend, solver, dtype):
    """Elementwise maps round alike in any batch, so alone and together must agree to the bit (in the kernels)."""
    rates = [0.1, 0.97, 0.5, 0.8, 0.0]
    f = rows_at_rates(rates, dtype)
    z0 = torch.zeros(5, 6, dtype=dtype)
    z, info = ak.fixed_point(f, z0, solver=solver, rtol=1e-5, max_steps=500, backend=backend)
    assert info.converged.all()
    assert len(set(info.steps.tolist())) >= 2
    for row in range(5):
        one = slice(row, row + 1)
        alone, single = ak.fixed_point(
            lambda z, one=one: f(z, one), z0[one], solver=solver, rtol=1e-5, max_steps=500, backend=backend
        )
        assert single.steps.item() == info.steps[row].item()
        if backend == "reference":
            torch.testing.assert_close(z[one], alone)
        else:
            assert_same_bits(z[one], alone)
            assert_same_bits(info.residual[one], single.residual)


@floats
def test_nine_steps_stay_nine(backend, dtype):
    """Picard at rates .1 and .7 by hand: the fast row's count and value do not move when the slow one goes on."""
    rtol, counts = 1e-6 if dtype == torch.float32 else 1e-8, []
    for rate in (0.1, 0.7):
        z, steps = 0.0, 1
        while abs(rate * z + 1 - z) > rtol * abs(rate * z + 1):
            z, steps = rate * z + 1, steps + 1
        counts.append(steps)
    rate = torch.tensor([[0.1], [0.7]], dtype=dtype)
    z, info = ak.fixed_point(
        lambda z: rate * z + 1,
        torch.zeros(2, 1, dtype=dtype),
        solver=ak.Picard(),
        rtol=rtol,
        max_steps=100,
        backend=backend,
    )
    assert info.steps.tolist() == counts
    expected = [(1 - r ** (k - 1)) / (1 - r) for r, k in zip((0.1, 0.7), counts, strict=True)]
    torch.testing.assert_close(z[:, 0].double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


@fused_solvers
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fused_rows_alone_and_anywhere(backend, kind, dtype, solver):
    """A row alone, in any batch, at any place in it, on one thread or two, twice: the same bits in the kernels."""
    size, rows = 19, 37
    cell = make_cell(kind, size, 5, dtype)
    x = torch.randn(rows, 5, dtype=torch.float64).to(dtype) * torch.logspace(-2, 0.5, rows)[:, None].to(dtype)
    rtol = 2e-2 if dtype in HALVES else 1e-5
    with torch.no_grad():
        u = cell.inject(x)  # once: a library product's bits depend on the batch

    def solve(places):
        return solve_places(cell, u, places, solver=solver, rtol=rtol, max_steps=60, backend=backend)

    everything = solve(torch.arange(rows))
    if dtype not in HALVES:
        assert len(set(everything[1].tolist())) > 1
    orders = [torch.tensor([k]) for k in (0, 17, 36)]
    orders += [torch.arange(rows), torch.arange(rows).flip(0), torch.arange(9, 26), torch.arange(rows).repeat(3)]
    if backend == "reference":  # slow, and promises rounding only
        orders = orders[1:5:3]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for order in orders:
            for got, want in zip(solve(order), everything, strict=True):
                want = want[order]
                if backend == "reference" and got.is_floating_point():
                    torch.testing.assert_close(got, want, rtol=2 * rtol, atol=2 * rtol)
                elif backend == "reference":
                    assert (got.int() - want.int()).abs().max() <= 1
                else:
                    assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 65, 128])
def test_fused_rows_fill_tiles(backend, kind, dtype, size):
    """Batches that take many tiles, whose freed places are refilled, and a gradient through them."""
    rows = 301 if backend != "reference" else 79
    cell = make_cell(kind, size, 7, dtype)
    x = torch.randn(rows, 7, dtype=dtype) * torch.linspace(0.05, 2, rows)[:, None].to(dtype)
    with torch.no_grad():
        u = cell.inject(x)  # once: a library product's bits depend on the batch

    def run(order):
        inputs = u[order].clone().requires_grad_()
        z, info = ak.fixed_point(
            cell.bind_injection(inputs), x.new_zeros(len(order), size), rtol=1e-5, max_steps=100, backend=backend
        )
        # A row's cotangent must depend on that row alone.
        (gradient,) = torch.autograd.grad(z.square().sum(), inputs)
        return z.detach(), info.steps, gradient

    torch.set_num_threads(2)
    everything = run(torch.arange(rows))
    for threads, order in [(1, torch.arange(rows)), (2, torch.randperm(rows)), (2, torch.arange(40, 77))]:
        torch.set_num_threads(threads)
        z, steps, gradient = run(order)
        if backend == "reference":
            assert (steps - everything[1][order]).abs().max() <= 1
            torch.testing.assert_close(z, everything[0][order], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(gradient, everything[2][order], rtol=1e-2, atol=1e-3)
        else:
            assert torch.equal(steps, everything[1][order])
            assert_same_bits(z, everything[0][order])
            torch.testing.assert_close(gradient, everything[2][order], rtol=1e-5, atol=1e-6)


@every_solver
@floats
def test_two_runs_give_the_same_bits(backend, solver, dtype):
    weight, u = family("sym", 40, 33, dtype)
    f, z0 = (lambda z: torch.tanh(z @ weight.mT + u)), torch.zeros(40, 33, dtype=dtype)
    runs = [ak.fixed_point(f, z0, solver=solver, rtol=1e-5, max_steps=200, backend=backend) for _ in range(2)]
    assert_same_bits(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1].steps, runs[1][1].steps)


@every_solver
@pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_one_nonfinite_problem(backend, solver, dtype, poison):
    """From the start, and from its fourth evaluation on: the others keep every bit, it keeps its best iterate."""
    u = torch.linspace(0.1, 1, 24, dtype=torch.float64).view(6, 4).to(dtype)
    z0 = torch.zeros(6, 4, dtype=dtype)
    rtol = 1e-2 if dtype in HALVES else 1e-6

    def run(bad_from):
        calls = []

        def f(z):
            calls.append(None)
            fz = torch.cos(z) / 2 + u
            return fz if bad_from is None or len(calls) < bad_from else fz.index_fill(0, torch.tensor([2]), poison)

        return ak.fixed_point(f, z0, solver=solver, rtol=rtol, max_steps=50, backend=backend)

    clean, clean_info = run(None)
    others = [0, 1, 3, 4, 5]
    for bad_from in (1, 3):
        z, info = run(bad_from)
        assert_same_bits(z[others], clean[others])
        assert torch.equal(info.steps[others], clean_info.steps[others])
        assert torch.equal(info.residual[others], clean_info.residual[others])
        assert info.converged[others].all()
        assert info.status[2] == ak.Status.NONFINITE
        assert z[2].isfinite().all()
        if bad_from == 1:
            assert torch.equal(z[2], z0[2])
            assert not info.residual[2].isfinite()
        else:
            # Two finite evaluations; the second, at cos(0) / 2 + u, has the lower residual.
            torch.testing.assert_close(z[2], 0.5 + u[2])
            assert info.steps[2] == 2
            again = torch.cos(z[2].double()) / 2 + u[2].double()
            expected = (again - z[2].double()).norm() / again.norm()
            assert info.residual[2].item() == pytest.approx(expected.item(), rel=5e-2 if dtype in HALVES else 1e-4)


@fused_solvers
@floats
@pytest.mark.parametrize("kind", KINDS)
def test_one_nan_row_in_a_fused_solve(backend, kind, solver, dtype):
    cell = make_cell(kind, 17, 5, dtype)
    x = torch.randn(40, 5, dtype=dtype)
    layer = ak.nn.FixedPoint(cell, solver=solver, rtol=1e-5, max_steps=60, backend=backend)
    others = torch.arange(40) != 7
    with torch.no_grad():
        clean = layer(x)
        info = layer.info
        x[7] = math.nan
        z = layer(x)
    assert_same_bits(z[others], clean[others])
    assert torch.equal(layer.info.steps[others], info.steps[others])
    assert layer.info.status[7] == ak.Status.NONFINITE
    assert z[7].isfinite().all() and not layer.info.residual[7].isfinite()


@fused_solvers
def test_gradient_beside_a_problem_that_diverged(backend, solver):
    """A row that diverged and is not part of the loss adds nothing to the shared weight's gradient."""
    weight, u = family("sym", 6, 8)
    gain = torch.full((6, 1), 0.4, dtype=torch.float64)
    gain[3] = 50.0
    others = torch.arange(6) != 3

    def gradient(rows):
        w = weight.clone().requires_grad_()
        z, info = ak.fixed_point(
            lambda z: gain[rows] * (z @ w.mT).sinh() + u[rows],
            torch.zeros(len(u[rows]), 8, dtype=torch.float64),
            solver=solver,
            rtol=1e-10,
            max_steps=200,
            backend=backend,
        )
        assert info.converged[others[rows]].all()
        assert z.isfinite().all()
        return torch.autograd.grad(torch.where(others[rows, None], z, 0).sum(), w)[0], info.status

    (expected, _), (together, status) = gradient(others), gradient(torch.full((6,), True))
    assert status[3] in (ak.Status.DIVERGED, ak.Status.NONFINITE)
    torch.testing.assert_close(together, expected, rtol=1e-7, atol=1e-9)
