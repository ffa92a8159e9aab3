"""precision="mixed" of the affine cell: a row's bits depend on that row alone, forward and adjoint.

For the kernels only: the reference's products are a library's, whose rounding depends on the batch.
"""

from __future__ import annotations

import math

import pytest
import torch
from maps import BACKENDS, assert_same_bits, family
from mixed import (
    RTOL,
    Problem,
    adjoint_solution,
    cotangents,
    every_solver,
    every_solver_and_full,
    has_few_bits,
    main_solvers_and_full,
    problem_of,
)

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])


def test_mixed_is_another_computation(backend):
    """Where the processor has products for it; else the tests of this precision would be of the full one."""
    problem = problem_of("orth", 256)
    (mixed, _), (full, _) = (problem.solve(backend, ak.Anderson(), precision=p) for p in ("mixed", "full"))
    assert torch.equal(mixed, full) != has_few_bits()


@main_solvers_and_full
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("size", [17, 64, 256])
def test_bad_rows_are_alone(backend, size, poison, solver):
    """Rows with a NaN or Inf in u or in the start: the others keep every bit, and those return finite values."""
    problem = Problem(*family("orth", 61, size, torch.float32), torch.zeros(61, size), "identity")
    z, info = problem.solve(backend, solver)
    u, z0 = problem.u.clone(), problem.z0.clone()
    bad = torch.tensor([0, 13, 60])
    u[bad, -1] = poison
    z0[29, 0] = poison
    others = torch.ones(61, dtype=torch.bool).index_fill(0, torch.tensor([*bad.tolist(), 29]), False)
    got, got_info = problem.solve(backend, solver, u=u, z0=z0)
    assert_same_bits(got[others], z[others])
    for name in ("steps", "residual", "status"):
        assert_same_bits(getattr(got_info, name)[others], getattr(info, name)[others], name)
    assert (got_info.status[~others] == ak.Status.NONFINITE).all()
    assert got[bad].isfinite().all()


def everything(result):
    z, info = result
    return {"z": z, "steps": info.steps, "residual": info.residual, "status": info.status}


@every_solver_and_full
@pytest.mark.parametrize("size", [17, 64, 127, 256])
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_a_row_keeps_its_bits(backend, kind, size, solver):
    """Alone, in any batch, at any place in it, on any number of threads, from run to run."""
    rows = 151
    problem = problem_of(kind, size, rows)
    u = problem.u * torch.linspace(0.05, 2, rows)[:, None]
    torch.set_num_threads(2)
    whole = everything(problem.solve(backend, solver, u=u))
    order = torch.randperm(rows)
    for threads, places in [
        (2, torch.arange(rows)),
        (1, torch.arange(rows)),
        (2, order),
        (1, order[:31]),
        (2, order[:5].repeat(9)),
        *((1, order[k : k + 1]) for k in range(4)),
    ]:
        torch.set_num_threads(threads)
        for name, got in everything(problem.solve(backend, solver, rows=places, u=u)).items():
            assert_same_bits(got, whole[name][places], f"{name}, {len(places)} rows on {threads}:")


@every_solver
@pytest.mark.parametrize("size", [17, 64, 127, 256])
def test_a_row_of_the_adjoint_keeps_its_bits(backend, size, solver):
    """The adjoint's own solve, y = phi' * (y W + v) with W transposed: honest, and each row for itself."""
    problem = problem_of("sym", size)
    v, rows = cotangents(problem), len(problem.u)
    slope, w = adjoint_solution(problem, problem.solve("reference", ak.Auto())[0], v)
    slope32 = slope.float()

    def solve(places):
        start, scale = slope32[places] * v[places], slope32[places]
        options = dict(activation="identity", solver=solver, rtol=RTOL, max_steps=150, mixed=True)
        return ak.ops.solve_affine(start, v[places], problem.weight.mT, scale=scale, **options)

    torch.set_num_threads(2)
    whole = solve(torch.arange(rows))
    assert (whole.status == ak.Status.CONVERGED).all()
    y, weight = whole.z.double(), problem.weight.double()
    f = slope32.double() * (y @ weight + v.double())
    true = (f - y).norm(dim=-1) / f.norm(dim=-1)
    assert (true <= RTOL + 1e-6).all()
    assert ((true - whole.residual.double()).abs() <= 1e-6).all()
    assert ((y - slope * w).norm(dim=-1) <= 20 * RTOL * y.norm(dim=-1)).all()
    for threads, places in [
        (1, torch.arange(rows)),
        (2, torch.arange(rows).flip(0)),
        (1, torch.tensor([3])),
        (2, torch.arange(10, 44)),
    ]:
        torch.set_num_threads(threads)
        for got, want in zip(solve(places)[:4], whole[:4], strict=True):
            assert_same_bits(got, want[places])
