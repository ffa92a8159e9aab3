"""Histories other codes published, step for step (NUMERICS: closed forms and published histories, 1 to 4).

How the counts map. A published count n says: the n-th iterate moved by less than the tolerance (KINSOL), or n residual
norms were computed (Chandrasekhar). Here `steps` counts evaluations of f, and the value returned is the iterate the
last residual was measured at: evaluation k sees iterate k - 1. So the n-th KINSOL iterate is the state of evaluation
n + 1, and a history of n residuals is n steps. The states f was evaluated at are recorded, which makes the
comparison exact.
"""

import numpy as np
import pytest
import torch
from maps import (
    BACKENDS,
    CLOSE,
    HALVES,
    KINSOL_SOLUTION,
    KINSOL_START,
    ROBERTS_SOLUTION,
    ROBERTS_START,
    SOLVERS,
    TIGHT,
    Recorder,
    chandrasekhar,
    chandrasekhar_kernel,
    kinsol,
    roberts,
    toth_kelley,
)
from oracle import TOTH_KELLEY_RESIDUALS, anderson, first_below, max_steps_between, picard, residual_norms

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def as_numpy(f):
    return lambda x: f(torch.from_numpy(x)[None])[0].numpy()


def record(f, start, solver, backend, dtype=torch.float64, steps=30, **options):
    """The states f is evaluated at, as numpy rows, and what the solve returned."""
    seen = Recorder(f)
    z0 = torch.as_tensor(start, dtype=dtype)[None]
    z, info = ak.fixed_point(seen, z0, solver=solver, max_steps=steps, backend=backend, **options)
    return seen.rows(0), z, info


KINSOL_COUNTS = [(0, 1.0, 5), (0, 0.5, 21), (2, 1.0, 5), (2, 0.5, 8)]


def kinsol_solver(history, damping, ridge=0.0):
    return ak.Anderson(history, damping, ridge) if history else ak.Picard(damping)


@pytest.mark.parametrize(("history", "damping", "published"), KINSOL_COUNTS)
@pytest.mark.parametrize("ridge", [0.0, 1e-8])
def test_kinsol_history(backend, history, damping, published, ridge):
    solver = kinsol_solver(history, damping, ridge)
    states, _, _ = record(kinsol, KINSOL_START, solver, backend, rtol=1e-9)
    tolerance = 1.49012e-6 * (damping if history == 0 else 1.0)
    assert first_below(max_steps_between(states), tolerance) == published
    np.testing.assert_allclose(states[published], KINSOL_SOLUTION, atol=1e-5)


@pytest.mark.parametrize(("history", "damping", "published"), KINSOL_COUNTS)
def test_kinsol_iterates_are_the_oracles(backend, history, damping, published):
    start, f = np.array(KINSOL_START), as_numpy(kinsol)
    exact = anderson(f, start, published, history, damping) if history else picard(f, start, published, damping)
    states, _, _ = record(kinsol, KINSOL_START, kinsol_solver(history, damping), backend, rtol=1e-10)
    for ours, theirs in zip(states, exact[: published + 1], strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize(("history", "damping", "published"), KINSOL_COUNTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kinsol_steps_and_value(backend, history, damping, published, dtype):
    """The stopping test itself: steps = the first evaluation whose |g| is within atol, and the state it was at."""
    start, f = np.array(KINSOL_START), as_numpy(kinsol)
    exact = anderson(f, start, 30, history, damping) if history else picard(f, start, 30, damping)
    expected = first_below(residual_norms(f, exact), 1.49012e-6)
    states, z, info = record(
        kinsol, KINSOL_START, kinsol_solver(history, damping), backend, dtype, rtol=0.0, atol=1.49012e-6
    )
    assert info.steps.tolist() == [expected]
    assert info.status.tolist() == [ak.Status.CONVERGED]
    assert torch.equal(z[0].double(), torch.from_numpy(states[expected - 1]))
    np.testing.assert_allclose(z[0].double().numpy(), KINSOL_SOLUTION, atol=2e-6 / damping)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_solutions_in_half(backend, solver, dtype):
    """Of the published maps, those whose figures 16 bits hold (Roberts' and Toth and Kelley's need more)."""
    z0 = torch.tensor([KINSOL_START], dtype=dtype)
    z, info = ak.fixed_point(kinsol, z0, solver=solver, rtol=TIGHT[dtype], backend=backend)
    assert info.converged.all()
    np.testing.assert_allclose(z[0].double().numpy(), KINSOL_SOLUTION, rtol=CLOSE[dtype], atol=CLOSE[dtype])
    h, z0 = chandrasekhar(512, 0.9, dtype), torch.ones(1, 512, dtype=dtype)
    z, info = ak.fixed_point(h, z0, solver=solver, rtol=TIGHT[dtype], keep="best", backend=backend)
    assert info.converged.all()
    # The kernel's entries were rounded to the same dtype.
    exact, _ = ak.fixed_point(
        lambda z: 1 / (1 - z @ chandrasekhar_kernel(512, 0.9).to(dtype).double().mT),
        z0.double(),
        rtol=1e-12,
        max_steps=200,
        backend=backend,
    )
    assert (z.double() - exact).norm() <= CLOSE[dtype] * exact.norm()


@pytest.mark.parametrize(("history", "published"), [(2, 8), (1, 11)])
def test_roberts_history(backend, history, published):
    states, z, _ = record(roberts, ROBERTS_START, ak.Anderson(history, ridge=0.0), backend, rtol=1e-13)
    assert first_below(max_steps_between(states), 1e-10) == published
    np.testing.assert_allclose(states[published], ROBERTS_SOLUTION, rtol=1e-6)
    np.testing.assert_allclose(z[0].numpy(), ROBERTS_SOLUTION, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", [ak.Anderson(2), ak.Anderson(1), ak.Auto(), ak.Broyden()])
def test_roberts_solution(backend, solver, dtype):
    rtol = 1e-10 if dtype == torch.float64 else 1e-6
    _, z, info = record(roberts, ROBERTS_START, solver, backend, dtype, steps=60, rtol=rtol)
    assert info.converged.all()
    np.testing.assert_allclose(z[0].double().numpy(), ROBERTS_SOLUTION, rtol=1e-6 if dtype == torch.float64 else 3e-3)


def test_toth_kelley_residuals(backend):
    """Differences parallel to eight digits: as published until both count, then without the one that adds nothing.

    From the fourth residual on the published history rests on a least-squares problem of condition 2.5e11, whose
    Gram matrix is singular to rounding in float64. The rule here is to drop the oldest column instead: what follows is
    the history of m = 1, to the solution in fewer steps than published, where no ridge hides it.
    """
    states, _, info = record(toth_kelley, (1.0, 1.0), ak.Anderson(2, ridge=0.0), backend, rtol=1e-13)
    norms = residual_norms(as_numpy(toth_kelley), states)
    np.testing.assert_allclose(norms[:3], TOTH_KELLEY_RESIDUALS[:3], rtol=1e-5)
    one = residual_norms(as_numpy(toth_kelley), anderson(as_numpy(toth_kelley), np.ones(2), 5, 1))
    np.testing.assert_allclose(norms[:5], one[:5], rtol=1e-4)
    assert norms[5] < 1e-9
    assert info.converged.all() and info.steps.item() < len(TOTH_KELLEY_RESIDUALS)


def test_toth_kelley_with_a_ridge(backend):
    """The default ridge regularises the same system; it gets there no later than published either."""
    states, _, info = record(toth_kelley, (1.0, 1.0), ak.Anderson(2), backend, rtol=1e-12)
    norms = residual_norms(as_numpy(toth_kelley), states)
    np.testing.assert_allclose(norms[:3], TOTH_KELLEY_RESIDUALS[:3], rtol=1e-4)
    assert info.converged.all() and info.steps.item() <= len(TOTH_KELLEY_RESIDUALS)


@pytest.mark.parametrize(("ridge", "slack"), [(0.0, 0), (1e-8, 1)])
def test_chandrasekhar_history_lengths(backend, ridge, slack):
    """To the step without a ridge; the default ridge costs at most one."""
    h = chandrasekhar(512, 0.99, torch.float64)
    for history, published in enumerate([11, 10, 10, 11, 12, 12], start=1):
        states, _, _ = record(h, np.ones(512), ak.Anderson(history, ridge=ridge), backend, rtol=1e-10)
        norms = np.array(residual_norms(as_numpy(h), states))
        assert abs(first_below(list(norms / norms[0]), 1e-8) - published) <= slack


@pytest.mark.parametrize("history", range(1, 7))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chandrasekhar_steps(backend, history, dtype):
    """Our own stopping test at a tolerance float32 can meet, against the oracle's count."""
    exact = as_numpy(chandrasekhar(512, 0.99, torch.float64))
    iterates = anderson(exact, np.ones(512), 12, history)
    relative = [np.linalg.norm(exact(x) - x) / np.linalg.norm(exact(x)) for x in iterates]
    solver, rtol = ak.Anderson(history, ridge=0.0), 1e-4
    h = chandrasekhar(512, 0.99, dtype)
    _, z, info = record(h, np.ones(512), solver, backend, dtype, rtol=rtol, trace=True)
    expected, steps = first_below(relative, rtol), info.steps.item()
    np.testing.assert_allclose(z[0].double().numpy(), iterates[expected - 1], rtol=1e-3)
    assert info.converged.all() and info.trace[steps:].isnan().all()
    if dtype == torch.float64 or history <= 3:
        assert steps == expected
        # Rounding of the map, which depends on the processor, shows in residuals of a few units in the last place.
        rounding = 2 * torch.finfo(dtype).eps
        np.testing.assert_allclose(info.trace[:steps, 0].numpy(), relative[:steps], rtol=5e-2, atol=rounding)
    else:
        # The fourth difference is parallel to the others to float32's rounding: its weight is a matter of luck.
        assert steps <= expected + 1
        np.testing.assert_allclose(info.trace[:5, 0].numpy(), relative[:5], rtol=5e-2)
