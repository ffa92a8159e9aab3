"""The fused step of an unknown map, over whole solves, against the reference step in float64."""

import pytest
import torch

from attractor_kernels import Anderson, Auto, Picard
from attractor_kernels.backends.reference.step import anderson_step as reference_step
from attractor_kernels.backends.triton.step_launch import anderson_step, prepare_step
from attractor_kernels.info import Status
from attractor_kernels.ops.anderson_step import step_buffers


def solve(step, f, z0, problems, groups, solver, *, max_steps=40, rtol=1e-5, min_steps=0, keep_best=False):
    """The result, the buffers and the number of steps; buffers start as garbage."""
    z = z0.clone()
    buffers = step_buffers(z, problems, groups, solver, max_steps=max_steps, trace=True)
    for buffer in (buffers.history, buffers.best, buffers.out):
        buffer.fill_(torch.nan)
    options = (solver.code, solver.damping, getattr(solver, "ridge", 0.0), rtol, 0.0, max_steps, min_steps, keep_best)
    steps = 0
    while int(buffers.active):
        step(z, f(z).contiguous(), *buffers, *options)
        steps += 1
        z, buffers = buffers.out, buffers._replace(out=z)
    return z, buffers, steps


def make_map(problems, groups, entries, coupled=True):
    """tanh of a contraction, at a speed of its own for each problem."""
    speed = torch.linspace(0.2, 1.0, problems, dtype=torch.float64).repeat_interleave(groups).unsqueeze(-1)
    c = torch.randn(problems * groups, entries, dtype=torch.float64)
    a = torch.randn(entries, entries, dtype=torch.float64) if coupled else torch.linspace(-0.5, 0.9, entries).double()
    a = 0.8 * a / torch.linalg.matrix_norm(a, 2) if coupled else a

    def f(z):
        x = z.reshape(problems * groups, entries).double()
        x = x @ a.mT if coupled else a * x
        return torch.tanh(speed * x + c).to(z.dtype).view(z.shape)

    return f


def check(problems, groups, entries, solver, tolerance=1e-5, coupled=True, f=None, z0=None, **options):
    f = make_map(problems, groups, entries, coupled) if f is None else f
    z0 = torch.zeros(problems, groups, entries) if z0 is None else z0
    z, got, steps = solve(anderson_step, f, z0, problems, groups, solver, **options)
    want_z, want, want_steps = solve(reference_step, f, z0.double(), problems, groups, solver, **options)
    assert torch.equal(got.status, want.status)
    assert (got.steps - want.steps).abs().max() <= 1 and abs(steps - want_steps) <= 1
    torch.testing.assert_close(z.double(), want_z, rtol=tolerance, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(got.trace[:4], want.trace[:4], rtol=1e-3, atol=1e-5, equal_nan=True)
    # The other buffer holds the results too, of all but those that ended last.
    early = (~got.trace.isnan()).sum(0) < steps
    assert torch.equal(got.out[early], z[early])
    return got


SOLVERS = [Picard(), Picard(damping=0.7), Anderson(history=2), Anderson(history=3, damping=0.8), Auto(history=2)]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_one_launch(solver):
    check(5, 1, 13, solver)


@pytest.mark.parametrize("entries", [1, 2, 100])
def test_sizes_of_one_launch(entries):
    check(3, 1, entries, Anderson(history=3))


@pytest.mark.parametrize("solver", SOLVERS[1:4], ids=str)
def test_mixing_groups(solver):
    check(2, 5, 7, solver)


@pytest.mark.parametrize("solver", SOLVERS[::2], ids=str)
def test_many_tiles(solver):
    check(2, 1, 5000, solver, coupled=False, max_steps=7)


def test_many_tiles_of_many_groups():
    check(1, 2, 4100, Anderson(history=2), coupled=False, max_steps=5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("keep_best", [False, True])
def test_best_iterate(groups, keep_best):
    """Over-relaxed, so that residuals rise; some problems diverge and return their best iterate."""

    def f(z):
        return (torch.linspace(-2.2, 0.5, 4, dtype=z.dtype).view(4, 1, 1) * z + 1).contiguous()

    z0 = torch.randn(4, groups, 3)
    check(4, groups, 3, Picard(), 1e-4, f=f, z0=z0, keep_best=keep_best, max_steps=12)
    check(4, groups, 3, Anderson(history=1), 1e-4, f=f, z0=z0, keep_best=keep_best, max_steps=4)


def test_a_problem_that_breaks_ends_alone():
    f = make_map(4, 1, 9)

    def broken(z):
        fz = f(z)
        fz[2, 0, 3] = torch.where(fz[2, 0, 3] > -2, torch.nan, 0.0)
        return fz

    z0 = torch.zeros(4, 1, 9)
    clean, clean_buffers, _ = solve(anderson_step, f, z0, 4, 1, Anderson(history=2))
    z, buffers, _ = solve(anderson_step, broken, z0, 4, 1, Anderson(history=2))
    others = [0, 1, 3]
    assert torch.equal(z[others], clean[others])
    assert torch.equal(buffers.steps[others], clean_buffers.steps[others])
    assert buffers.status[2] == Status.NONFINITE and torch.equal(z[2], z0[2]) and buffers.steps[2] == 1


@pytest.mark.parametrize(("groups", "entries"), [(1, 20), (2, 20), (1, 5000)])
def test_a_combination_that_overflows_gives_way(groups, entries):
    """A fixed point outside float16's range, in one entry of the last tile: the whole group takes the plain step."""
    c = torch.full((entries,), 60.0, dtype=torch.float16)
    c[-1] = 6000  # the combination would be c / 0.05
    z0 = torch.zeros(1, groups, entries, dtype=torch.float16)
    z, _, _ = solve(anderson_step, lambda z: 0.95 * z + c, z0, 1, groups, Anderson(history=1), max_steps=3)
    torch.testing.assert_close(z, (1.95 * c).expand_as(z), rtol=2e-3, atol=0)
    c[-1] = 60
    z, buffers, _ = solve(anderson_step, lambda z: 0.95 * z + c, z0, 1, groups, Anderson(history=1), max_steps=3)
    torch.testing.assert_close(z, (20 * c).expand_as(z), rtol=5e-2, atol=0)  # nothing overflows: the combination
    assert buffers.steps.tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    f = make_map(3, 1, 13)
    z, buffers, _ = solve(anderson_step, f, torch.zeros(3, 1, 13, dtype=dtype), 3, 1, Anderson(history=2), rtol=2e-2)
    assert (buffers.status == Status.CONVERGED).all()
    assert ((f(z.double()) - z.double()).norm(dim=-1) <= 2.5e-2 * z.double().norm(dim=-1)).all()


def test_a_problem_has_the_same_bits_in_every_batch():
    f = make_map(7, 1, 6)
    whole, buffers, _ = solve(anderson_step, f, torch.zeros(7, 1, 6), 7, 1, Auto(history=2))

    def alone(z):
        padded = torch.zeros(7, 1, 6)
        padded[5] = z[0]
        return f(padded)[5:6]

    z, single, _ = solve(anderson_step, alone, torch.zeros(1, 1, 6), 1, 1, Auto(history=2))
    assert torch.equal(z[0], whole[5])
    assert single.steps[0] == buffers.steps[5]


@pytest.mark.parametrize(("groups", "entries", "launches"), [(1, 4096, 1), (1, 4097, 2), (2, 8, 2)])
def test_launches(groups, entries, launches):
    z = torch.zeros(1, groups, entries)
    buffers = step_buffers(z, 1, groups, Picard())
    calls, plan = prepare_step(z, z, *buffers, 0, 1.0, 0.0, 1e-4, 0.0, 5, 0, False)
    assert len(calls) == plan.launches == launches
