"""The fused step of an unknown map on a device against float64 plain torch on the CPU, from a warp a problem to many
blocks a problem."""

import math

import pytest
import torch
from solving import need, relative, same_bits

import attractor_kernels as ak
from attractor_kernels import Anderson, Auto, Picard, Status
from attractor_kernels.backends import use_plan
from attractor_kernels.ops import step_buffers
from attractor_kernels.solve.run import namespace_of

pytestmark = pytest.mark.gpu
SOLVERS = [Picard(), Picard(0.6), Anderson(), Anderson(1), Anderson(3, 0.7), Anderson(6), Auto()]
# problems, mixing groups, entries of a group
SHAPES = [(5, 1, 40), (300, 1, 511), (3, 4, 100), (300, 1, 4096), (2, 1, 5000), (1, 1, 300_001), (3, 97, 64)]
# Largest relative difference of an iterate after a few steps: rounding, magnified by the small solve.
SAME = {torch.float64: 1e-10, torch.float32: 2e-3, torch.bfloat16: 4e-2, torch.float16: 5e-3}
RTOL = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class Steps:
    """A solve by steps, whose buffers start out as NaN: what is read before it is written shows."""

    def __init__(self, namespace, z0, groups, solver, **options):
        self.z, self.problems = z0.clone(), len(z0)
        chosen = dict(rtol=0.0, atol=0.0, max_steps=40, min_steps=0, keep_best=False) | options
        self.buffers = step_buffers(self.z, len(z0), groups, solver, max_steps=chosen["max_steps"], trace=True)
        for buffer in (self.buffers.out, self.buffers.best, self.buffers.history):
            buffer.fill_(math.nan)
        self.options = (solver.code, solver.damping, getattr(solver, "ridge", 0.0), *chosen.values())
        self.step = getattr(torch.ops, namespace).anderson_step

    def advance(self, f):
        self.step(self.z, f(self.z), *self.buffers, *self.options)
        self.z, self.buffers = self.buffers.out, self.buffers._replace(out=self.z)
        return self.z

    def run(self, f):
        while self.buffers.active:
            self.advance(f)
        return self


def contraction(problems, groups, entries):
    """z -> tanh(0.5 (a z + its neighbour) + u), the same values on every device."""
    generator = torch.Generator().manual_seed(entries)
    shape = (problems, groups, entries)
    u, a = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def f(z):
        there = dict(device=z.device, dtype=z.dtype)
        return torch.tanh(0.4 * (a.tanh().to(**there) * z + z.roll(1, -1)) + 0.5 * u.to(**there))

    return f


@pytest.mark.parametrize("dtype", SAME, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_by_step(backend, device, shape, solver, dtype):
    problems, groups, entries = shape
    need(backend, "anderson_step", device, dtype, entries, 0, getattr(solver, "history", 0))
    f, zero = contraction(*shape), torch.zeros(shape)
    ours = Steps(namespace_of(backend), zero.to(device, dtype), groups, solver)
    theirs = Steps("attractor_kernels_reference", zero.double(), groups, solver)
    for _ in range(6):
        assert relative(ours.advance(f), theirs.advance(f)) < SAME[dtype]
    assert ours.buffers.active.item() == problems


@pytest.mark.parametrize("dtype", SAME, ids=str)
@pytest.mark.parametrize("solver", [Picard(), Anderson(), Auto()], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_to_the_end(backend, device, shape, solver, dtype):
    _, groups, entries = shape
    need(backend, "anderson_step", device, dtype, entries, 0, getattr(solver, "history", 0))
    f, z0 = contraction(*shape), torch.zeros(shape, device=device, dtype=dtype)
    solve = Steps(namespace_of(backend), z0, groups, solver, rtol=RTOL[dtype], max_steps=150).run(f)
    assert (solve.buffers.status == Status.CONVERGED).all()
    residual = ak.ops.residual_norm(solve.z, f(solve.z))
    if dtype.itemsize >= 4:  # f itself is rounded in the halves
        torch.testing.assert_close(solve.buffers.residual, residual.float(), rtol=1e-2, atol=1e-7)
    for problem, step in list(enumerate(solve.buffers.steps.tolist()))[:50]:
        assert solve.buffers.trace[step - 1, problem] == solve.buffers.residual[problem]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=str)
def test_same_bits_in_every_run_and_alone(backend, device, shape, solver):
    """The sums of a problem of many blocks are added up in one order, whoever comes first."""
    problems, groups, entries = shape
    need(backend, "anderson_step", device, torch.float32, entries, 0, getattr(solver, "history", 0))
    f, z0 = contraction(*shape), torch.zeros(shape, device=device)
    states = []
    for _ in range(5):
        solve = Steps(namespace_of(backend), z0, groups, solver)
        for _ in range(9):
            solve.advance(f)
        states.append(solve.z.clone())
    assert all(same_bits(state, states[0]) for state in states)
    last = slice(problems - 1, problems)
    whole = Steps(namespace_of(backend), z0, groups, solver)
    alone = Steps(namespace_of(backend), z0[last], groups, solver)
    for _ in range(9):
        fz = f(whole.z)
        alone.advance(lambda z, fz=fz: fz[last].contiguous())
        whole.advance(lambda z, fz=fz: fz)
    assert same_bits(alone.z, whole.z[last])


@pytest.mark.parametrize(
    "choices",
    [{"blocks": 3}, {"split": 0}, {"split": 1}, {"kept": 0}, {"kept": 1}, {"solvers": 2}, {"warp": 0}, {"warp": 1}],
    ids=str,
)
@pytest.mark.parametrize("shape", [(300, 1, 511), (3, 4, 100), (2, 1, 5000), (3, 97, 64), (1, 1, 300_001)], ids=str)
def test_plans_chosen_by_hand(backend, device, shape, choices):
    """All but `warp` leave the bits as they are; what cannot be had is refused."""
    if backend != "cuda":
        pytest.skip("about the plans of the CUDA kernels")
    _, groups, entries = shape
    f, z0 = contraction(*shape), torch.zeros(shape, device=device)

    def solve():
        steps = Steps("attractor_kernels", z0, groups, Anderson())
        for _ in range(6):
            steps.advance(f)
        return steps.z

    model = solve()
    with use_plan("anderson_step", backend="cuda", **choices):
        if choices.get("split") and groups * entries <= 512:
            with pytest.raises(RuntimeError, match="the plan chosen by hand cannot be had: blocks cannot share"):
                solve()
            return
        told = solve()
    if "warp" in choices:
        assert relative(told, model) < SAME[torch.float32]
    else:
        assert same_bits(told, model)


def test_residuals_whose_plan_is_chosen_by_hand(backend, device):
    if backend != "cuda":
        pytest.skip("about the plans of the CUDA kernels")
    for entries in (300, 4096, 50_000):
        z, fz = torch.randn(2, 40, entries, device=device)
        model = ak.ops.residual_norm(z, fz)
        with use_plan("residual_norm", backend="cuda", blocks=3):
            assert same_bits(ak.ops.residual_norm(z, fz), model)
        with use_plan("residual_norm", backend="cuda", warp=entries == 4096):
            torch.testing.assert_close(ak.ops.residual_norm(z, fz), model, rtol=1e-5, atol=0)
    refused = pytest.raises(RuntimeError, match="a warp takes problems of one chunk only")
    with use_plan("residual_norm", backend="cuda", warp=True), refused:
        ak.ops.residual_norm(z, fz)


@pytest.mark.parametrize("shape", [(6, 1, 40), (6, 1, 5000)], ids=str)
def test_broken_problems_end_alone(backend, device, shape):
    need(backend, "anderson_step", device, torch.float32, shape[2], 0, 5)
    f, z0 = contraction(*shape), torch.zeros(shape, device=device)
    clean = Steps(namespace_of(backend), z0, 1, Anderson(), rtol=1e-5).run(f)

    def broken(z):
        fz = f(z)
        fz[2, 0, 7] = torch.nan
        return fz

    solve = Steps(namespace_of(backend), z0, 1, Anderson(), rtol=1e-5).run(broken)
    whole = [0, 1, 3, 4, 5]
    assert solve.buffers.status[2] == Status.NONFINITE
    assert same_bits(solve.z[whole], clean.z[whole])


def test_many_problems(backend, device):
    """A hundred thousand, each held against its own true residual."""
    shape = (100_000, 1, 24)
    need(backend, "anderson_step", device, torch.float32, 24, 0, 5)
    f, z0 = contraction(*shape), torch.zeros(shape, device=device)
    solve = Steps(namespace_of(backend), z0, 1, Anderson(), rtol=1e-5, max_steps=100).run(f)
    assert (solve.buffers.status == Status.CONVERGED).all()
    z = solve.z.double().cpu()
    fz = f(z)
    assert ((fz - z).norm(dim=(1, 2)) / fz.norm(dim=(1, 2))).max() <= 1.05e-5 + 1e-6
