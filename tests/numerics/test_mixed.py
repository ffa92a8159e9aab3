"""precision="mixed" of the affine cell: the same true residual as in full precision, whatever the weights.

Written against the contract: what is asked of the value, its steps, residual and status.
How the products of differences are rounded is the kernel's business. The residual that counts is that of the plain
map in float64 at the value returned.
"""

from __future__ import annotations

import math

import pytest
import torch
from maps import BACKENDS, HALVES, assert_same_bits, family
from mixed import (
    RTOL,
    Problem,
    adjoint_solution,
    assert_honest,
    cotangents,
    every_solver_and_full,
    main_solvers,
    main_solvers_and_full,
    problem_of,
)
from torch import Tensor

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@every_solver_and_full
@pytest.mark.parametrize("size", [1, 2, 17, 64, 127, 256])
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_true_residual_of_the_families(backend, kind, size, solver):
    problem = problem_of(kind, size)
    z, info = problem.solve(backend, solver)
    assert info.converged.all()
    assert_honest(problem, z, info)
    full = problem.solve(backend, solver, precision="full")[1]
    if size >= 17:  # below, Anderson ends exactly, which a rounded difference cannot
        # 10 to 15 % more, one of them to accept in full precision.
        assert info.steps.float().mean() <= 1.2 * full.steps.float().mean() + 1.5


@main_solvers_and_full
@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-3, 3e-7])
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_other_tolerances(backend, kind, rtol, solver):
    """From one reached at once to one below what float32 can."""
    problem = problem_of(kind, 64)
    z, info = problem.solve(backend, solver, rtol=rtol)
    assert_honest(problem, z, info, rtol)
    if rtol > 1e-6:
        assert info.converged.all()
    else:
        assert info.converged.float().mean() > 0.5
        assert (info.converged | (info.status == ak.Status.STAGNATED)).all()


@main_solvers_and_full
@pytest.mark.parametrize("size", [64, 384])
@pytest.mark.parametrize("far", [1e3, 1e6])
def test_far_starts(backend, far, size, solver):
    """Rounding errors of a product with a large state do not outlive that state."""
    problem = problem_of("orth", size)
    generator = torch.Generator().manual_seed(3)
    z, info = problem.solve(backend, solver, z0=far * torch.randn(problem.z0.shape, generator=generator))
    assert info.converged.all()
    assert_honest(problem, z, info)


@pytest.mark.parametrize("precision", ["mixed", "full"])
def test_weight_at_the_limit(backend, precision):
    """A mask's -3.4e38: the unit that it drives saturates, and the solve is as good as any."""
    weight, u = family("orth", 9, 256, torch.float32)
    weight[3, 5] = torch.finfo(torch.float32).min
    problem = Problem(weight, u, torch.zeros(9, 256))
    z, info = problem.solve(backend, ak.Picard(), precision=precision)
    assert info.converged.all() and z.isfinite().all()
    assert (z[:, 3] == -torch.sign(z[:, 5])).all()


@main_solvers_and_full
def test_absolute_tolerance(backend, solver):
    problem = problem_of("orth", 64)
    z, info = problem.solve(backend, solver, rtol=0.0, atol=1e-3)
    assert info.converged.all()
    u, weight = problem.u.double(), problem.weight.double()
    residual = (torch.tanh(z.double() @ weight.mT + u) - z.double()).norm(dim=-1)
    assert (residual <= 1e-3 + 1e-6).all()
    assert_honest(problem, z, info, rtol=math.inf)


@main_solvers_and_full
@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 12, 19])
def test_out_of_steps(backend, keep, limit, solver):
    """The value is that of a step whose residual was measured, however far the solve had come."""
    for kind in ("orth", "sym"):
        problem = problem_of(kind, 127)
        z, info = problem.solve(backend, solver, max_steps=limit, keep=keep, trace=True)
        assert_honest(problem, z, info)
        assert (info.steps <= limit).all() and (info.steps >= 1).all()
        assert (info.converged | (info.status == ak.Status.MAX_STEPS)).all()
        if keep == "last":
            assert (info.steps[~info.converged] == limit).all()
        at = info.trace.gather(0, info.steps[None].long() - 1)[0]
        assert torch.equal(at, info.residual)
        if keep == "best":
            assert torch.equal(info.residual, info.trace.nan_to_num(nan=math.inf).min(0).values)


@main_solvers_and_full
@pytest.mark.parametrize("least", [0, 5, 60])
def test_fewest_steps(backend, least, solver):
    problem = problem_of("sym", 64)
    z, info = problem.solve(backend, solver, min_steps=least, rtol=1e-4)
    assert info.converged.all() and (info.steps >= least).all()
    assert_honest(problem, z, info, rtol=1e-4)


@main_solvers_and_full
def test_trace(backend, solver):
    """A residual at every step that was taken, the last of them the one reported; NaN only after the end."""
    problem = problem_of("orth", 64)
    _, info = problem.solve(backend, solver, trace=True, max_steps=100)
    step = torch.arange(1, 101)[:, None]
    assert torch.equal(info.trace.isnan(), step > info.steps)
    assert torch.equal(info.trace.gather(0, info.steps[None].long() - 1)[0], info.residual)


def permuted(size: int, value: float) -> Tensor:
    """One entry a row and column, at no fixed place."""
    return value * torch.eye(size, dtype=torch.float64).roll(size // 3 + 1, 0)


def badly_scaled(kind: str, size: int) -> Problem:
    orth, u = family("orth", 41, size)
    generator = torch.Generator().manual_seed(7)
    spread = 10.0 ** -(8 * torch.rand(size, 1, dtype=torch.float64, generator=generator))
    fan = 0.5 * orth  # the first unit, which listens to none, drives all others into saturation
    fan[0], fan[1:, 0] = 0.0, 300.0
    positive = (0.1 * torch.eye(size, dtype=torch.float64)) + orth @ orth.mT + 0.2 * (orth + orth.mT) / 2
    weight = {
        "zero": torch.zeros_like(orth),
        "one row": orth * (torch.arange(size) == size // 2)[:, None],
        "times 1e-8": 1e-8 * orth,
        "times 1e-30": 1e-30 * orth,
        "subnormal": 1e-41 * orth,
        "times 1e8": 1e8 * positive,
        "outlier in each row": 0.05 * orth + permuted(size, 0.85),
        "outlier beside noise": 1e-6 * orth + permuted(size, 0.9),
        "huge outlier in each row": fan,
        "rows of any scale": spread * orth,
        "columns of any scale": orth * spread.mT,
        "diagonal": torch.diag(torch.linspace(-0.9, 0.9, size, dtype=torch.float64)),
        "all equal": torch.full_like(orth, 0.9 / size),
    }[kind]
    return Problem(weight.float(), u.float(), torch.zeros(41, size))


SCALES = [
    "zero",
    "one row",
    "times 1e-8",
    "times 1e-30",
    "subnormal",
    "times 1e8",
    "outlier in each row",
    "outlier beside noise",
    "huge outlier in each row",
    "rows of any scale",
    "columns of any scale",
    "diagonal",
    "all equal",
]


@main_solvers_and_full
@pytest.mark.parametrize("size", [1, 17, 64, 256])
@pytest.mark.parametrize("kind", SCALES)
def test_badly_scaled_weights(backend, kind, size, solver):
    """Whatever full precision solves, mixed does, honestly and in about as many steps."""
    problem = badly_scaled(kind, size)
    full = problem.solve(backend, solver, precision="full")[1]
    z, info = problem.solve(backend, solver)
    assert_honest(problem, z, info)
    assert info.converged[full.converged].all()
    both = info.converged & full.converged
    assert both.float().mean() > 0.9, "a case that full precision does not solve shows nothing"
    assert info.steps[both].float().mean() <= 1.5 * full.steps[both].float().mean() + 2


@main_solvers_and_full
def test_weights_that_never_converge(backend, solver):
    """Random signs at 1e8: rows cycle. None may say that it converged without having."""
    weight, u = family("orth", 41, 64)
    problem = Problem((1e8 * weight).float(), u.float(), torch.zeros(41, 64))
    z, info = problem.solve(backend, solver, max_steps=40)
    assert_honest(problem, z, info)
    assert not info.converged.all()
    assert z.isfinite().all()


@main_solvers_and_full
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_weights_not_finite(backend, poison, solver):
    """One such weight: no row has a finite residual, and the start comes back. (inf * 0 at the start is NaN.)"""
    problem = problem_of("orth", 64)
    weight = problem.weight.clone()
    weight[5, 40] = poison
    start = 0.5 * torch.ones_like(problem.z0)
    z, info = Problem(weight, problem.u, start, "identity").solve(backend, solver)
    assert (info.status == ak.Status.NONFINITE).all() and (info.steps == 1).all()
    assert_same_bits(z, start)


@main_solvers_and_full
@pytest.mark.parametrize("start", [1e-30, 1e3, 1e6, 1e15])
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_huge_start(backend, kind, start, solver):
    """Far from the solution, where a rounded difference is as large as what is left."""
    problem = problem_of(kind, 64)
    z0 = start * torch.randn(problem.u.shape, generator=torch.Generator().manual_seed(3))
    z, info = problem.solve(backend, solver, z0=z0)
    assert info.converged.all()
    assert_honest(problem, z, info)


@main_solvers_and_full
def test_start_at_the_solution(backend, solver):
    problem = problem_of("orth", 64)
    solved, _ = problem.solve(backend, solver)
    z, info = problem.solve(backend, solver, z0=solved)
    assert_same_bits(z, solved)
    assert (info.steps == 1).all() and info.converged.all()


@main_solvers_and_full
@pytest.mark.parametrize("exponent", [-26, 26])
def test_scale(backend, exponent, solver):
    """relu is homogeneous: u times a power of two scales the solution, in as many steps."""
    weight, u = family("orth", 41, 64)
    problem = Problem((0.9 * weight).float(), u.float(), torch.zeros(41, 64), "relu")
    z, info = problem.solve(backend, solver)
    scaled, scaled_info = problem.solve(backend, solver, u=problem.u * 2.0**exponent)
    assert info.converged.all() and scaled_info.converged.all()
    assert torch.equal(info.steps, scaled_info.steps)
    torch.testing.assert_close(scaled * 2.0**-exponent, z, rtol=1e-4, atol=1e-5)


FORMS = {
    "identity": ("identity", None),
    "relu": ("relu", None),
    "sigmoid": ("sigmoid", 0.3),
    "softplus": ("softplus", None),
    "gelu": ("gelu", -0.2),
    "silu": ("silu", None),
    "leaky": ("tanh", 0.4),
    "slow leak": ("tanh", 0.9),
}


@main_solvers_and_full
@pytest.mark.parametrize(("activation", "leak"), FORMS.values(), ids=FORMS)
def test_other_forms(backend, activation, leak, solver):
    weight, u = family("sym", 41, 64)
    spread = 0.8 * (1 - abs(leak or 0.0))
    problem = Problem((spread * weight).float(), u.float(), torch.zeros(41, 64), activation, leak)
    z, info = problem.solve(backend, solver, max_steps=400)
    assert info.converged.all()
    assert_honest(problem, z, info)


@main_solvers
@pytest.mark.parametrize("size", [17, 64, 127, 256])
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_gradients(backend, kind, size, solver):
    """The adjoint in mixed precision gives the gradients at the value returned, row by row to the tolerance."""
    problem = problem_of(kind, size)
    v = cotangents(problem)
    cell = ak.nn.AffineCell(size, 1)
    cell.weight.data = problem.weight
    u = problem.u.clone().requires_grad_()
    options = dict(solver=solver, rtol=RTOL, max_steps=150, precision="mixed", backend=backend)
    z, info = ak.fixed_point(cell.bind_injection(u), problem.z0, **options)
    by_u, by_weight = torch.autograd.grad((z * v).sum(), (u, cell.weight))
    assert info.adjoint.converged.all()
    z = z.detach().double()
    slope, w = adjoint_solution(problem, z, v)
    expected = slope * w
    # A residual of RTOL leaves an error of RTOL / (1 - .9).
    assert ((by_u.double() - expected).norm(dim=-1) <= 20 * RTOL * expected.norm(dim=-1)).all()
    assert (by_weight.double() - expected.mT @ z).norm() <= 20 * RTOL * (expected.mT @ z).norm()


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@main_solvers
def test_other_dtypes(backend, dtype, solver):
    """float64 stays float64; 16-bit states are solved in float32 and rounded once."""
    weight, u = family("orth", 41, 64, dtype)
    rtol = 1e-11 if dtype == torch.float64 else RTOL
    problem = Problem(weight, u, torch.zeros(41, 64, dtype=dtype))
    z, info = problem.solve(backend, solver, rtol=rtol, max_steps=400)
    assert z.dtype == dtype and info.converged.all()
    if dtype == torch.float64:
        assert (problem.judge(z)[0] <= rtol).all()
    else:
        wide = Problem(weight.float(), u.float(), torch.zeros(41, 64))
        assert_same_bits(z, wide.solve(backend, solver)[0].to(dtype))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(backend, rows):
    problem = problem_of("orth", 64, rows)
    z, info = problem.solve(backend, ak.Auto())
    assert z.shape == (rows, 64) and info.converged.all()
    assert_honest(problem, z, info)
