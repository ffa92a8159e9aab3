"""precision="mixed" with products of changes in bfloat16, as the plan has them where they pay.

The residual that counts is that of the plain map in float64 at the value returned.
"""

import contextlib

import pytest
import torch
from solving import ANDERSON, AUTO, PICARD, SMALL, Case, affine, agree, contraction, family, gated, normal, tail

from attractor_kernels.backends import use_plan
from attractor_kernels.backends.triton import launch
from attractor_kernels.backends.triton.planning import KEPT
from attractor_kernels.info import Status

main_solvers = pytest.mark.parametrize("solver", [PICARD, ANDERSON, AUTO])


@pytest.fixture(autouse=True)
def _with_changes():
    with contextlib.ExitStack() as stack:
        for name in KEPT:
            stack.enter_context(use_plan(name, mixed=True))
        yield


def arguments_of(case, options, dtype=torch.float32):
    return (*(None if t is None else t.to(dtype) for t in case.tensors), *case.constants, *options)


def true_residual(case, z):
    """Of each row, relative, in float64."""
    f = case._replace(tensors=(z.double(), *case.tensors[1:])).reference(tail(max_steps=2, trace=True, rtol=0.0))
    return f.trace[0].double()


def assert_honest(case, got):
    """What is reported belongs to the value. A product of changes is off by more than this allows."""
    torch.testing.assert_close(got.residual.double(), true_residual(case, got.z), rtol=5e-3, atol=3e-7)


@pytest.mark.parametrize(
    ("name", "solver"), [("orth", PICARD), ("orth", AUTO), ("sym", PICARD), ("sym", ANDERSON), ("sym", AUTO)]
)
def test_both_families(name, solver):
    case = family(name, 4, 24)
    got, want = case.triton(tail(solver, rtol=1e-4, mixed=True)), case.reference(tail(solver, rtol=1e-4))
    assert (got.status == Status.CONVERGED).all()
    assert_honest(case, got)
    assert (got.z - want.z).norm() <= 2e-3 * want.z.norm()
    # 10 to 15 % more, one of them to accept in full precision.
    assert got.steps.double().mean() <= 1.2 * want.steps.double().mean() + 1.5


@pytest.mark.parametrize("solver", [PICARD, ANDERSON])
def test_steps_of_the_cpu_kernel(solver):
    """The same rules. Rounding decides by a few steps when a row ends, so that they are compared on average."""
    facts = pytest.importorskip("attractor_kernels._facts")
    if "bf16" not in facts.instruction_set():
        pytest.skip("this processor has no products of bfloat16")
    case, options = family("sym", 16, 48), tail(solver, mixed=True)
    want = torch.ops.attractor_kernels.solve_affine(*arguments_of(case, options))
    got = case.triton(options)
    assert torch.equal(got.status, want[3])
    assert (got.steps - want[1]).abs().max() <= 4
    assert (got.steps - want[1]).double().mean().abs() <= 2


@pytest.mark.parametrize("dim", [1, 17, 100, 256])
def test_state_sizes(dim):
    case = affine(3, dim, norm=0.4, leak=True, scale=True)
    got, want = case.triton(tail(mixed=True, rtol=1e-4)), case.reference(tail(rtol=1e-4))
    assert (got.status == Status.CONVERGED).all() and (got.steps - want.steps).abs().max() <= 2
    assert_honest(case, got)
    assert (got.z - want.z).norm() <= 1e-3 * want.z.norm()


@main_solvers
def test_an_adjoint_solve(solver):
    """y = s * (y W + v): a scale, a transposed weight, rows of any size."""
    v, weight, scale = normal(5, 20), contraction(20, 20, 0.8), torch.rand(5, 20, dtype=torch.float64)
    v[3] *= 1e-8
    case = Case("solve_affine", (scale * v, v, weight.mT, None, scale), (0, 0))
    got = case.triton(tail(solver, mixed=True))
    assert (got.status == Status.CONVERGED).all()
    assert_honest(case, got)
    exact = torch.linalg.solve(torch.eye(20).double() - scale[:, :, None] * weight.mT, scale * v)
    assert ((got.z - exact).norm(dim=1) <= 1e-4 * exact.norm(dim=1)).all()


@pytest.mark.parametrize(("dim", "solver"), [(1, PICARD), (13, AUTO), (40, ANDERSON)])
def test_gated(dim, solver):
    case = gated(3, dim)
    options = tail(solver, rtol=1e-4, max_steps=100)
    got, want = case.triton(options._replace(mixed=True)), case.reference(options)
    assert (got.status == Status.CONVERGED).all()
    assert_honest(case, got)
    assert (got.z - want.z).norm() <= 2e-3 * want.z.norm()
    assert (got.steps - want.steps).max() <= 4


def test_a_best_iterate_is_measured_in_full():
    """Rows that come close before they diverge: the best iterate is of a step with changes."""
    q = torch.linalg.qr(normal(6, 6))[0]
    weight = q @ torch.diag(torch.tensor([0.3, 3.0, 0.1, 0.2, 0.1, 0.3], dtype=torch.float64)) @ q.mT
    u = normal(4, 6)
    u -= (u @ q[:, 1:2]) * q[:, 1] * (1 - 1e-5)
    u[3] -= (u[3] @ q[:, 1]) * q[:, 1]  # this one converges
    case = Case("solve_affine", (torch.zeros_like(u), u, weight, None, None), (0, 0))
    got, want = case.triton(tail(mixed=True, rtol=1e-6, trace=True)), case.reference(tail(rtol=1e-6))
    assert got.status[:3].tolist() == [Status.DIVERGED] * 3
    assert torch.equal(got.status[:3], want.status[:3]) and (got.steps[:3] > 2).all()
    assert_honest(case, got)
    lowest = got.trace.nan_to_num(1).min(0)
    assert torch.equal(lowest.indices[:3] + 1, got.steps[:3])
    assert (got.residual[:3] != lowest.values[:3]).all() and (got.residual[:3] < 0.05).all()


@main_solvers
def test_out_of_steps(solver):
    """The last evaluation is in full, however far the solve had come."""
    case = family("orth", 3, 33)
    for limit in (1, 2, 6):
        got = case.triton(tail(solver, mixed=True, max_steps=limit, trace=True))
        assert (got.steps == limit).all() and (got.status == Status.MAX_STEPS).all()
        assert_honest(case, got)
        assert torch.equal(got.trace[limit - 1], got.residual)


def test_min_steps_and_absolute_tolerance():
    case = affine(3, 17, norm=0.3)
    for options in (tail(min_steps=14, mixed=True), tail(rtol=0.0, atol=1e-3, mixed=True)):
        got = case.triton(options)
        assert (got.status == Status.CONVERGED).all() and (got.steps >= options.min_steps).all()
        assert_honest(case, got)


def test_stagnation():
    """A tolerance that float32 cannot meet ends at its rounding, in full."""
    case = affine(2, 17, norm=0.2)
    got = case.triton(tail(rtol=0.0, atol=1e-12, mixed=True))
    assert (got.status == Status.STAGNATED).logical_or(got.residual == 0).all()
    assert got.residual.max() < 1e-6


@pytest.mark.parametrize("solver", [PICARD, ANDERSON])
def test_start_at_the_solution(solver):
    case = family("sym", 3, 17)
    z = case.triton(tail(solver, mixed=True)).z
    again = case._replace(tensors=(z.double(), *case.tensors[1:])).triton(tail(solver, mixed=True))
    assert torch.equal(again.z, z) and (again.steps == 1).all()


@pytest.mark.parametrize(("solver", "poison"), [(PICARD, torch.nan), (ANDERSON, torch.inf)])
def test_weights_not_finite(poison, solver):
    """From zero too, where the product is not taken: 0 * inf is NaN."""
    case = affine(2, 6, activation=0)
    case.tensors[2][1, 4] = poison
    case.tensors[0][1] = 0
    got = case.triton(tail(solver, mixed=True))
    assert (got.status == Status.NONFINITE).all() and (got.steps == 1).all()
    assert torch.equal(got.z, case.tensors[0].float())


def test_weights_that_bfloat16_cannot_hold():
    """Entries that cancel: the map of changes is another one, and the row goes on in full."""
    base = torch.full((16, 16), 100.0, dtype=torch.float64) + 0.3 * normal(16, 16)
    weight = torch.cat([base, -base - contraction(16, 16, 0.3)], 1)
    weight = torch.cat([weight, weight.roll(3, 0)])
    z0 = normal(3, 16)
    case = Case("solve_affine", (torch.cat([z0, z0], 1), normal(3, 32), weight, None, None), (3, 0))
    options = tail(ANDERSON, mixed=True, max_steps=15)
    assert_honest(case, case.triton(options))


@pytest.mark.parametrize(
    ("options", "dtype"),
    [(dict(keep_best=True), torch.float32), (dict(), torch.bfloat16), (dict(mixed=False), torch.float32)],
)
def test_where_all_products_are_in_full(options, dtype):
    case = affine(3, 20)
    full = tail(**(dict(mixed=True) | options))
    plan = launch.prepare("solve_affine", arguments_of(case, full, dtype), SMALL)[2]
    assert plan.kept == 0 and plan.precision == ("tf32x3" if full.mixed else "ieee")
    assert launch.prepare("solve_affine", arguments_of(case, tail(mixed=True)), SMALL)[2].precision == "bf16 changes"
    agree(case.triton(full, dtype=dtype), case.reference(full), 1e-5 if dtype == torch.float32 else 3e-2)
