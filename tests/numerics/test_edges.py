"""The ends of every range: few steps, histories of 1 and beyond the state, degenerate maps, empty batches, statuses."""

import math

import pytest
import torch
from maps import BACKENDS, FLOATS, HALVES, SOLVERS, Recorder, assert_same_bits, family, true_residual

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS + HALVES, ids=str)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def tanh_map(rows=4, size=6, dtype=torch.float64, kind="sym"):
    weight, u = family(kind, rows, size, dtype)
    return lambda z: torch.tanh(z @ weight.mT + u)


@every_solver
@every_dtype
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_few_steps(backend, solver, dtype, limit):
    f = Recorder(tanh_map(dtype=dtype))
    z0 = torch.full((4, 6), 0.25, dtype=dtype)
    z, info = ak.fixed_point(f, z0, solver=solver, rtol=0.0, max_steps=limit, backend=backend, trace=True)
    assert info.steps.tolist() == [limit] * 4
    assert info.status.tolist() == [ak.Status.MAX_STEPS] * 4
    assert info.trace.shape == (limit, 4)
    assert len(f.seen) == limit
    assert torch.equal(z, f.seen[-1])
    torch.testing.assert_close(info.residual.double(), true_residual(f.f, z), rtol=0.05, atol=1e-6)
    if limit == 1:
        assert torch.equal(z, z0)


def test_second_state_is_the_damped_step(backend):
    f = tanh_map()
    z0 = torch.full((4, 6), 0.25, dtype=torch.float64)
    for solver in (ak.Picard(0.3), ak.Anderson(damping=0.3), ak.Auto(damping=0.3), ak.Broyden(damping=0.3)):
        z, _ = ak.fixed_point(f, z0, solver=solver, rtol=0.0, max_steps=2, backend=backend)
        torch.testing.assert_close(z, z0 + 0.3 * (f(z0) - z0), rtol=1e-14, atol=1e-14)


@floats
@pytest.mark.parametrize("history", [1, 2, 7, 32])
@pytest.mark.parametrize("ridge", [0.0, 1e-8, 1e-2])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_histories_shorter_and_longer_than_the_state(backend, history, ridge, size, dtype):
    f = tanh_map(rows=5, size=size, dtype=dtype)
    rtol = 1e-5 if dtype == torch.float32 else 1e-9
    for solver in (ak.Anderson(history, ridge=ridge), ak.Auto(history, ridge=ridge)):
        z, info = ak.fixed_point(
            f, torch.zeros(5, size, dtype=dtype), solver=solver, rtol=rtol, max_steps=150, backend=backend
        )
        assert info.converged.all()
        assert (true_residual(f, z) <= 1.1 * rtol).all()


@floats
def test_history_beyond_the_state_is_clamped(backend, dtype):
    """More history than entries changes nothing at all."""
    f, z0 = tanh_map(size=3, dtype=dtype), torch.zeros(4, 3, dtype=dtype)
    runs = [ak.fixed_point(f, z0, solver=ak.Anderson(m), rtol=1e-5, backend=backend) for m in (3, 4, 32)]
    for z, info in runs[1:]:
        assert_same_bits(z, runs[0][0]) and torch.equal(info.steps, runs[0][1].steps)


@every_solver
@every_dtype
def test_constant_map(backend, solver, dtype):
    """Anderson's second difference is exactly minus the first residual: one plain step, then residual 0."""
    target = torch.arange(1.0, 7.0, dtype=dtype).expand(4, 6)
    z, info = ak.fixed_point(lambda z: target + 0 * z, torch.zeros(4, 6, dtype=dtype), solver=solver, backend=backend)
    assert torch.equal(z, target)
    assert info.steps.tolist() == [2] * 4
    assert info.converged.all() and (info.residual == 0).all()


@every_solver
@every_dtype
@pytest.mark.parametrize("start", [0.0, 3.0])
def test_identity_map(backend, solver, dtype, start):
    """Everything is a fixed point: the start is returned after one evaluation, at the origin too (0 <= 0)."""
    z0 = torch.full((4, 6), start, dtype=dtype)
    z, info = ak.fixed_point(lambda z: z.clone(), z0, solver=solver, backend=backend)
    assert torch.equal(z, z0)
    assert info.steps.tolist() == [1] * 4
    assert info.converged.all() and (info.residual == 0).all()


@every_solver
@every_dtype
def test_identity_map_with_min_steps(backend, solver, dtype):
    """Zero differences make a zero Gram matrix: not a NaN in sight, for as long as it has to go on."""
    z0 = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6).to(dtype)
    z, info = ak.fixed_point(lambda z: z.clone(), z0, solver=solver, backend=backend, min_steps=9)
    assert torch.equal(z, z0)
    assert info.steps.tolist() == [9] * 4
    assert info.converged.all() and (info.residual == 0).all()


@every_solver
@every_dtype
def test_zero_map_at_the_origin(backend, solver, dtype):
    z, info = ak.fixed_point(lambda z: 0.5 * z, torch.zeros(4, 6, dtype=dtype), solver=solver, backend=backend)
    assert info.steps.tolist() == [1] * 4 and info.converged.all()
    assert (info.residual == 0).all() and (z == 0).all()


@every_solver
@floats
def test_start_at_the_fixed_point(backend, solver, dtype):
    f = tanh_map(dtype=dtype)
    rtol = 1e-6 if dtype == torch.float32 else 1e-12
    z0, _ = ak.fixed_point(f, torch.zeros(4, 6, dtype=dtype), rtol=rtol, max_steps=300, backend=backend)
    z, info = ak.fixed_point(f, z0, solver=solver, rtol=10 * rtol, backend=backend)
    assert torch.equal(z, z0)
    assert info.steps.tolist() == [1] * 4 and info.converged.all()


@every_solver
def test_linear_map_converged_twice_over(backend, solver):
    """Forced far past exact convergence, differences at rounding level must not throw the iterate away."""
    shift = torch.tensor([[1.5, 3.2]], dtype=torch.float64)
    rates = torch.tensor([0.7, 0.3], dtype=torch.float64)
    z, info = ak.fixed_point(
        lambda z: rates * z + shift,
        torch.zeros(1, 2, dtype=torch.float64),
        solver=solver,
        rtol=1e-9,
        min_steps=150,
        max_steps=200,
        backend=backend,
    )
    assert info.converged.all() and info.steps.item() >= 150
    torch.testing.assert_close(z, shift / (1 - rates), rtol=1e-8, atol=0)


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (4, 0)])
@every_solver
@pytest.mark.parametrize("options", [ak.Implicit(), ak.OneStep(), ak.Phantom(), ak.Unrolled(), ak.Neumann()], ids=repr)
def test_empty(backend, solver, shape, options):
    """No problems, or problems without entries (solved by being nothing): empty results, and an empty backward."""
    theta = torch.tensor(0.5, requires_grad=True)
    z, info = ak.fixed_point(
        lambda z: torch.cos(z) * theta,
        torch.zeros(shape),
        solver=solver,
        gradient=options,
        backend=backend,
        trace=True,
        max_steps=7,
    )
    assert z.shape == shape
    assert info.steps.shape == info.residual.shape == info.status.shape == shape[:1]
    assert info.trace.shape == (7, *shape[:1])
    assert info.converged.all()
    assert not info.residual.isnan().any()
    info.raise_if_failed()
    if z.requires_grad:
        z.sum().backward()
        assert theta.grad is None or theta.grad == 0
    else:
        # Steps that were never taken leave nothing to differentiate.
        assert isinstance(options, ak.Unrolled)


@every_solver
def test_no_batch_dimension(backend, solver):
    """batch_ndim=0: the whole tensor is one problem and info has no dimensions."""
    f = tanh_map()
    z, info = ak.fixed_point(
        f,
        torch.zeros(4, 6, dtype=torch.float64),
        solver=solver,
        batch_ndim=0,
        rtol=1e-8,
        max_steps=100,
        backend=backend,
    )
    assert info.steps.shape == () and info.residual.shape == () and info.converged.item()
    fz = f(z)
    assert info.residual.item() == pytest.approx(((fz - z).norm() / fz.norm()).item(), rel=1e-4)


@every_solver
def test_many_batch_dimensions(backend, solver):
    f = tanh_map(rows=24)
    z, info = ak.fixed_point(f, torch.zeros(24, 6, dtype=torch.float64), solver=solver, rtol=1e-8, backend=backend)
    shaped, shaped_info = ak.fixed_point(
        lambda z: f(z.reshape(24, 6)).view(2, 3, 4, 6),
        torch.zeros(2, 3, 4, 6, dtype=torch.float64),
        solver=solver,
        rtol=1e-8,
        batch_ndim=3,
        backend=backend,
    )
    assert_same_bits(shaped.view(24, 6), z)
    assert torch.equal(shaped_info.steps, info.steps.view(2, 3, 4))


@every_solver
@every_dtype
def test_divergence_returns_the_best_iterate(backend, solver, dtype):
    """A residual past 1e4 times the first ends as DIVERGED; the iterate of lowest relative residual comes back."""

    def f(z):
        # Residual (0.5 z - 1) up to 10, growing without bound beyond.
        return torch.where(z.abs() < 1, 0.5 * z + 3, 40.0 * z)

    z0 = torch.full((2, 3), 0.5, dtype=dtype)
    seen = Recorder(f)
    z, info = ak.fixed_point(seen, z0, solver=solver, rtol=1e-6, max_steps=40, backend=backend, trace=True)
    assert z.isfinite().all()
    if not isinstance(solver, ak.Picard):
        return
    expected = ak.Status.NONFINITE if dtype == torch.float16 else ak.Status.DIVERGED
    assert info.status.tolist() == [expected] * 2
    trace = info.trace[:, 0]
    best = torch.where(trace.isnan(), math.inf, trace).argmin().item()
    assert info.steps.tolist() == [best + 1] * 2
    assert torch.equal(z, seen.seen[best])
    assert info.residual[0] == trace[best]


@floats
def test_divergence_factor(backend, dtype):
    """z -> 3 z + 1 from 0: |g| = 3^k, first past 1e4 at k = 9, the tenth evaluation."""
    _z, info = ak.fixed_point(
        lambda z: 3 * z + 1,
        torch.zeros(1, 1, dtype=dtype),
        solver=ak.Picard(),
        max_steps=50,
        backend=backend,
        trace=True,
    )
    assert info.status.item() == ak.Status.DIVERGED
    assert (~info.trace.isnan()).sum() == 10
    with pytest.raises(ak.ConvergenceError, match="1"):
        info.raise_if_failed()


@every_solver
def test_anderson_finds_the_fixed_point_of_an_expanding_map(backend, solver):
    """Where Picard diverges, differences solve a linear map exactly."""
    if isinstance(solver, ak.Picard):
        pytest.skip("Picard diverges here by nature")
    z, info = ak.fixed_point(
        lambda z: 3 * z + 1, torch.zeros(1, 1, dtype=torch.float64), solver=solver, rtol=1e-9, backend=backend
    )
    assert info.converged.all()
    assert z.item() == pytest.approx(-0.5, rel=1e-8)


@every_solver
@every_dtype
def test_stagnation_at_rounding_level(backend, solver, dtype):
    """A tolerance no iterate can meet: ends at rounding level, long before max_steps, says so."""
    rows, size = 8, 32
    weight, u = family("orth", rows, size, dtype)
    f = lambda z: torch.tanh(z @ weight.mT + u)  # noqa: E731
    z0 = torch.zeros(rows, size, dtype=dtype)
    _, info = ak.fixed_point(f, z0, solver=solver, rtol=0.0, max_steps=2000, backend=backend, keep="best")
    done = torch.tensor([s in (ak.Status.STAGNATED, ak.Status.CONVERGED) for s in info.status.tolist()])
    assert done.all(), info.status
    assert (info.steps < 1000).all()
    assert (info.residual <= 8 * torch.finfo(dtype).eps).all()


@every_solver
def test_min_steps(backend, solver):
    f = tanh_map(kind="orth")
    z0 = torch.zeros(4, 6, dtype=torch.float64)
    _, info = ak.fixed_point(f, z0, solver=solver, rtol=1e-2, min_steps=0, backend=backend)
    low = info.steps.min().item()
    _, info = ak.fixed_point(f, z0, solver=solver, rtol=1e-2, min_steps=low + 5, backend=backend)
    assert (info.steps >= low + 5).all() and info.converged.all()


@every_solver
@floats
def test_absolute_tolerance(backend, solver, dtype):
    """|g| <= atol + rtol |f|: a state that goes to 0 ends by atol where rtol alone never would."""
    seen = Recorder(lambda z: 0.5 * z)
    z, info = ak.fixed_point(
        seen, torch.ones(1, 4, dtype=dtype), solver=ak.Picard(), rtol=0.0, atol=1e-3, max_steps=60, backend=backend
    )
    # |g| = 2^-k at evaluation k + 1 (four entries of 1 / 2 at k = 0): within 1e-3 first at k = 10.
    assert info.steps.item() == 11 and info.converged.all()
    _, info = ak.fixed_point(
        seen, torch.ones(1, 4, dtype=dtype), solver=ak.Picard(), rtol=0.5, atol=1e-1, max_steps=60, backend=backend
    )
    # |f| = |g|: 2^-k <= .1 + .5 * 2^-k first at k = 3.
    assert info.steps.item() == 4
    z, info = ak.fixed_point(
        lambda z: 0.5 * z,
        torch.ones(1, 4, dtype=dtype),
        solver=solver,
        rtol=0.0,
        atol=1e-3,
        max_steps=60,
        backend=backend,
    )
    assert info.converged.all() and z.norm() <= 2.1e-3


@every_solver
@every_dtype
def test_reported_residual_is_the_true_one(backend, solver, dtype):
    """Value, steps and residual belong together, however the solve ended."""
    f = tanh_map(rows=6, size=9, dtype=dtype)
    rtol = 3e-2 if dtype in HALVES else 1e-4
    for limit in (3, 6, 100):
        seen = Recorder(f)
        z, info = ak.fixed_point(
            seen, torch.zeros(6, 9, dtype=dtype), solver=solver, rtol=rtol, max_steps=limit, backend=backend
        )
        torch.testing.assert_close(
            info.residual.double(), true_residual(f, z), rtol=0.05 if dtype in HALVES else 1e-3, atol=1e-6
        )
        for row, steps in enumerate(info.steps.tolist()):
            assert_same_bits(seen.seen[steps - 1][row], z[row])
        if limit == 100:
            assert info.converged.all() and (info.residual <= rtol).all()
