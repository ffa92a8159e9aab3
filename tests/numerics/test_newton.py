"""Auto corrects the affine cell's rows by Newton steps: where these help, and where they must not lead astray."""

from __future__ import annotations

import pytest
import torch
from cells import PHI
from maps import BACKENDS, family
from mixed import RTOL, Problem, adjoint_solution, assert_honest, cotangents, has_few_bits, problem_of

import attractor_kernels as ak

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the compiled kernels")
both = pytest.mark.parametrize("precision", ["mixed", "full"])


def solve(problem: Problem, **options):
    return problem.solve("cpu", options.pop("solver", ak.Auto()), **options)


def with_diagonal(size: int, entry: float) -> torch.Tensor:
    return entry * torch.eye(size)


@pytest.mark.parametrize("size", [57, 64, 100, 129, 256, 300])
@pytest.mark.parametrize("kind", ["orth", "sym"])
@both
def test_few_evaluations(kind, size, precision):
    problem = problem_of(kind, size)
    z, info = solve(problem, precision=precision)
    _, picard = solve(problem, solver=ak.Picard(), precision="full")
    assert info.converged.all()
    assert_honest(problem, z, info)
    if has_few_bits():
        assert info.steps.max() <= 8 < 20 < picard.steps.min()


@pytest.mark.parametrize("leak", [None, -0.4, 0.5, 0.9, 0.99], ids=str)
@pytest.mark.parametrize("activation", PHI)
@both
def test_every_slope(activation, leak, precision):
    """The solution is the one that the plain map converges to in float64."""
    gain = {"relu2": 0.2}.get(activation, 0.5) * (1 - abs(leak or 0))
    base = problem_of("orth", 96)
    problem = Problem(base.weight * gain, base.u, base.z0, activation, leak)
    z, info = solve(problem, precision=precision)
    assert info.converged.all()
    assert_honest(problem, z, info)
    expected = torch.zeros_like(z, dtype=torch.float64)
    a = problem.u.double()
    for _ in range(3000):
        f = PHI[activation](expected @ problem.weight.double().mT + a) + (leak or 0) * expected
        if torch.equal(f, expected):
            break
        expected = f
    error = (z.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 10 * RTOL / (1 - abs(leak or 0)) ** 2


def test_partial_relu():
    base = problem_of("orth", 96)
    cell = ak.nn.AffineCell(96, 1, activation=ak.nn.partial_relu(40), leak=0.3)
    cell.weight.data = base.weight * 0.5
    bound = cell.bind_injection(base.u)
    with torch.no_grad():
        (z, info), (full, _) = (
            ak.fixed_point(bound, base.z0, rtol=RTOL, max_steps=150, precision=p, backend="cpu")
            for p in ("mixed", "full")
        )
    assert info.converged.all()
    torch.testing.assert_close(z, full, rtol=0, atol=1e-3)
    if has_few_bits():
        assert info.steps.max() <= 10


@pytest.mark.parametrize("size", [64, 128, 300])
def test_near_a_fixed_point_that_f_leads_away_from(size):
    """tanh(2 z) has 0, which repels, and +-0.9575. The equations say so, and the row goes on without Newton steps."""
    z0 = torch.rand(33, size).add(0.5).mul(1e-3) * torch.randn(33, 1).sign()
    problem = Problem(with_diagonal(size, 2.0), torch.zeros(33, size), z0)
    z, info = solve(problem)
    assert info.converged.all()
    # Anderson, which Auto takes to then, may end at either.
    roots = torch.tensor([-0.9575040240772687, 0.0, 0.9575040240772687])
    assert (z[..., None] - roots).abs().amin(-1).max() < 1e-4


@pytest.mark.parametrize("size", [64, 192])
@both
def test_where_picard_steps_run_away(size, precision):
    """z = -1.5 z + u repels; conjugate residuals see a positive 1 - J, and Newton steps find the solution."""
    u = torch.linspace(-1, 1, 20 * size).view(20, size)
    problem = Problem(with_diagonal(size, -1.5), u, torch.zeros(20, size), "identity")
    z, info = solve(problem, precision=precision)
    assert info.converged.all()
    torch.testing.assert_close(z, u / 2.5, rtol=1e-4, atol=1e-5)


@both
def test_some_slow_modes(precision):
    """A bulk that plain steps finish quickly, and three real modes they would take 200 steps for."""
    size = 128
    q = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    bulk = 0.5 * q.roll(1, 0) @ torch.eye(size, dtype=torch.float64)
    slow = q[:, :3]
    weight = (bulk - slow @ (slow.mT @ bulk)) @ (torch.eye(size) - slow @ slow.mT).double() + 0.95 * slow @ slow.mT
    u = 0.01 * torch.randn(40, size, generator=torch.Generator().manual_seed(4))
    problem = Problem(weight.float(), u, torch.zeros(40, size))
    z, info = solve(problem, precision=precision)
    assert info.converged.all()
    assert_honest(problem, z, info)
    if has_few_bits():
        assert info.steps.max() <= 12


@pytest.mark.parametrize("gain", [0.999, 1.1, 1.6, 3.0])
@pytest.mark.parametrize("kind", ["orth", "random"])
@both
def test_what_does_not_contract_is_reported_as_it_is(kind, gain, precision):
    base = problem_of("orth", 128)
    weight = base.weight / 0.9
    if kind == "random":
        weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(5)) / 128**0.5
    problem = Problem(weight * gain, base.u, base.z0)
    z, info = solve(problem, max_steps=60, precision=precision)
    assert z.isfinite().all()
    # Without keep="best" a row that runs out of steps returns the last of them, be it a correction that failed.
    assert (info.steps[info.status == ak.Status.MAX_STEPS] == 60).all()
    assert (info.steps <= 60).all()
    assert_honest(problem, z, info)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
@both
def test_out_of_steps_between_newton_steps(limit, precision):
    problem = problem_of("orth", 128)
    z, info = solve(problem, max_steps=limit, precision=precision)
    assert (info.steps == limit).all()
    assert (info.status == ak.Status.MAX_STEPS).all()
    assert_honest(problem, z, info)


@both
def test_a_second_solve_from_the_solution_stays(precision):
    problem = problem_of("sym", 200)
    z, _ = solve(problem, precision=precision)
    again, info = solve(problem, z0=z, precision=precision)
    assert (info.steps <= 2).all()
    torch.testing.assert_close(again, z, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [57, 64, 100, 128, 257])
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_a_row_in_full_keeps_its_bits(kind, size):
    """Alone, in any batch and on any number of threads: vectors or the matrix unit, signed bytes or not."""
    rows = 67
    problem = problem_of(kind, size, rows)
    u = problem.u * torch.linspace(0.05, 3, rows)[:, None]
    torch.set_num_threads(2)
    whole = solve(problem, u=u, precision="full")
    for threads, places in [
        (1, torch.arange(rows)),
        (2, torch.randperm(rows)),
        *((1, torch.arange(n)) for n in (3, 4, 5, 6, 17, 33, 49)),
        *((1, torch.tensor([k])) for k in range(0, rows, 13)),
    ]:
        torch.set_num_threads(threads)
        z, info = problem.solve("cpu", ak.Auto(), rows=places, u=u, precision="full")
        assert torch.equal(z, whole[0][places])
        assert torch.equal(info.steps, whole[1].steps[places])
        assert torch.equal(info.residual, whole[1].residual[places])


@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.parametrize("leak", [None, 0.3], ids=str)
@both
def test_gradients(size, leak, precision):
    """The adjoint solve takes Newton steps of its own; against the dense solution in float64."""
    base = problem_of("orth", size)
    cell = ak.nn.AffineCell(size, 1, leak=leak)
    cell.weight.data = base.weight * (1 - (leak or 0))
    u = base.u.clone().requires_grad_()
    z, info = ak.fixed_point(
        cell.bind_injection(u), base.z0, rtol=1e-6, max_steps=150, precision=precision, backend="cpu"
    )
    assert info.converged.all()
    v = torch.linspace(-1, 1, z.numel()).view(z.shape)
    z.backward(v)
    weight = cell.weight.detach().double()
    f = z.detach().double() * (1 - (leak or 0))  # phi(a) = z - leak z
    slope = 1 - f.square()
    system = (1 - (leak or 0)) * torch.eye(size, dtype=torch.float64) - slope[:, :, None] * weight
    expected = slope * torch.linalg.solve(system.mT, v.double())
    error = (u.grad.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 1e-4


def in_float64(kind: str, size: int, gain: float = 1.0, **form) -> Problem:
    weight, u = family(kind, 61, size, torch.float64)
    return Problem(gain * weight, u, torch.zeros_like(u), **form)


@pytest.mark.parametrize("size", [57, 64, 100, 129, 256, 300])
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_few_evaluations_in_float64(kind, size):
    """Corrections in 8 bits, residuals of f in float64."""
    problem = in_float64(kind, size)
    z, info = solve(problem, rtol=1e-12, max_steps=400)
    _, picard = solve(problem, rtol=1e-12, max_steps=400, solver=ak.Picard())
    assert info.converged.all()
    assert problem.judge(z)[0].max() <= 1e-12 * (1 + 1e-3)
    if has_few_bits():
        assert info.steps.max() <= 14 < 50 < picard.steps.min()


@pytest.mark.parametrize("leak", [None, -0.4, 0.9, 0.99], ids=str)
@pytest.mark.parametrize("activation", PHI)
def test_every_slope_in_float64(activation, leak):
    gain = {"relu2": 0.2}.get(activation, 0.5) * (1 - abs(leak or 0))
    problem = in_float64("orth", 97, gain, activation=activation, leak=leak)
    z, info = solve(problem, rtol=1e-11, max_steps=4000)
    assert info.converged.all()
    assert problem.judge(z)[0].max() <= 1e-11 * (1 + 1e-3)


@pytest.mark.parametrize("exponent", [-400, -160, 160, 400])
def test_float64_beyond_the_range_of_float32(exponent):
    """relu is homogeneous: u times a power of two scales the solution; float32 does not reach so far."""
    problem = in_float64("orth", 100, 0.9, activation="relu")
    options = dict(rtol=1e-10, max_steps=400)
    _, info = solve(problem, **options)
    scaled, scaled_info = solve(problem, u=problem.u * 2.0**exponent, **options)
    assert info.converged.all() and scaled_info.converged.all()
    assert problem.judge(scaled * 2.0**-exponent)[0].max() <= 1e-10 * (1 + 1e-3)


@pytest.mark.parametrize("entry", [1e-300, 1e60, float("inf"), float("nan")])
@pytest.mark.parametrize("size", [64, 300])
def test_float64_weights_that_float32_does_not_hold(size, entry):
    problem = in_float64("orth", size)
    weight = problem.weight.clone()
    weight[3, 5] = entry
    of_them, options = Problem(weight, problem.u, problem.z0), dict(rtol=1e-10, max_steps=400)
    z, info = solve(of_them, **options)
    _, picard = solve(of_them, solver=ak.Picard(), **options)
    # tanh takes what overflows; rows whose saturated unit changes its sign cycle.
    assert info.converged.sum() >= picard.converged.sum()
    assert info.converged.any() == (entry == entry)
    if abs(entry) < float("inf"):
        assert of_them.judge(z)[0][info.converged].max() <= 1e-10 * (1 + 1e-3)
    assert solve(problem, **options)[1].converged.all()  # nothing of those weights is kept


@pytest.mark.parametrize("leak", [None, 0.3], ids=str)
@pytest.mark.parametrize("size", [64, 129, 300])
def test_gradients_in_float64(size, leak):
    problem = in_float64("sym", size, 1 - (leak or 0))
    v = cotangents(problem)
    cell = ak.nn.AffineCell(size, 1, leak=leak, dtype=torch.float64)
    cell.weight.data = problem.weight
    u = problem.u.clone().requires_grad_()
    options = dict(rtol=1e-12, max_steps=400, backend="cpu")
    z, info = ak.fixed_point(cell.bind_injection(u), problem.z0, **options)
    (by_u,) = torch.autograd.grad((z * v).sum(), u)
    assert info.adjoint.converged.all()
    slope, _ = adjoint_solution(problem, z.detach(), v)
    system = (1 - (leak or 0)) * torch.eye(size, dtype=torch.float64) - slope[:, :, None] * problem.weight
    expected = slope * torch.linalg.solve(system.mT, v.double())
    assert ((by_u - expected).norm(dim=-1) <= 1e-10 * expected.norm(dim=-1)).all()
