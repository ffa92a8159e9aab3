"""The operators `anderson_step` and `residual_norm`: the compiled step against plain torch, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attractor_kernels import Anderson, Auto, Picard, Status
from attractor_kernels.backends import available
from attractor_kernels.ops import anderson_step as public_step
from attractor_kernels.ops import residual_norm, step_buffers

NAMESPACES = ["attractor_kernels", "attractor_kernels_reference"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SOLVERS = [Picard(), Picard(0.6), Anderson(), Anderson(1), Anderson(3, 0.7), Anderson(32, ridge=0.0), Auto()]

# Largest relative difference of an iterate after a few steps: rounding, magnified by the small solve.
SAME = {torch.float64: 1e-11, torch.float32: 2e-3, torch.bfloat16: 4e-2, torch.float16: 5e-3}

needs_cpu = pytest.mark.skipif(not available()["cpu"], reason="needs the compiled kernels")


class Solve:
    """A solve by steps whose buffers start out as NaN: what is read before it is written shows."""

    def __init__(self, f, z0: Tensor, groups: int = 1, solver=Anderson(), namespace: str = NAMESPACES[0], **options):
        self.f, self.z = f, z0.clone()
        o = {"rtol": 1e-5, "atol": 0.0, "max_steps": 40, "min_steps": 0, "keep_best": False, **options}
        self.buffers = step_buffers(self.z, len(z0), groups, solver, max_steps=o["max_steps"], trace=True)
        for buffer in (self.buffers.out, self.buffers.best, self.buffers.history):
            buffer.fill_(math.nan)
        solver_arguments = (solver.code, solver.damping, getattr(solver, "ridge", 0.0))
        self.arguments = (*solver_arguments, *(o[k] for k in ("rtol", "atol", "max_steps", "min_steps", "keep_best")))
        self.step = getattr(torch.ops, namespace).anderson_step

    def advance(self) -> Tensor:
        """One step; returns the iterates."""
        self.step(self.z, self.f(self.z), *self.buffers, *self.arguments)
        self.z, self.buffers = self.buffers.out, self.buffers._replace(out=self.z)
        return self.z

    def run(self) -> Solve:
        while self.buffers.active:
            self.advance()
        return self

    @property
    def steps(self):
        return self.buffers.steps.tolist()

    @property
    def status(self):
        return self.buffers.status.tolist()


def contraction(dtype: torch.dtype, *shape: int, scale: float = 1.0):
    """z -> scale tanh(W z / scale + u) over the last dimension."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(shape[-1], shape[-1], dtype=torch.float64, generator=generator)
    w = (0.9 * w / torch.linalg.matrix_norm(w, 2)).to(dtype)
    u = 0.5 * torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
    return lambda z: scale * torch.tanh((z / scale) @ w + u)


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@needs_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_agrees_with_plain_torch_step_by_step(solver, groups, dtype):
    f = contraction(dtype, 5, groups, 40)
    z0 = torch.zeros(5, groups, 40, dtype=dtype)
    rtol = 1e-2 if dtype.itemsize == 2 else 1e-4
    ours, theirs = (Solve(f, z0, groups, solver, namespace, rtol=rtol) for namespace in NAMESPACES)
    for _ in range(8):
        assert relative(ours.advance(), theirs.advance()) < SAME[dtype]
    ours.run()
    theirs.run()
    assert max(abs(a - b) for a, b in zip(ours.steps, theirs.steps, strict=True)) <= 1
    assert ours.status == theirs.status == [Status.CONVERGED] * 5
    assert bool((ours.buffers.residual <= rtol).all())


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_result_belongs_to_its_residual(solver, namespace):
    f = contraction(torch.float64, 6, 10)
    for keep_best in (False, True):
        solve = Solve(f, torch.zeros(6, 10, dtype=torch.float64), 1, solver, namespace, keep_best=keep_best).run()
        expected = residual_norm(solve.z, f(solve.z))
        torch.testing.assert_close(solve.buffers.residual.double(), expected, rtol=1e-5, atol=1e-12)
        for problem, step in enumerate(solve.steps):
            assert solve.buffers.trace[step - 1, problem] == solve.buffers.residual[problem]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_keep_best_returns_the_lowest_residual(namespace):
    angle = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64) * 1.2
    f = lambda z: z @ angle + torch.tensor([1.0, 0.5], dtype=torch.float64)  # noqa: E731
    z0 = torch.tensor([[3.0, 1.0], [0.4, 0.4]], dtype=torch.float64)
    best = Solve(f, z0, 1, Picard(), namespace, keep_best=True, max_steps=9).run()
    last = Solve(f, z0, 1, Picard(), namespace, max_steps=9).run()
    lowest = torch.nan_to_num(best.buffers.trace, torch.inf).min(0)
    assert torch.equal(best.buffers.residual, lowest.values)
    assert best.steps == (lowest.indices + 1).tolist()
    assert last.steps == [9, 9] and last.status == [Status.MAX_STEPS] * 2
    torch.testing.assert_close(residual_norm(best.z, f(best.z)).float(), best.buffers.residual)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=str)
def test_divergence_returns_the_best_finite_iterate(solver, namespace):
    f = lambda z: z**3 + 2 * z + 1  # noqa: E731
    z0 = torch.full((2, 3), 1.5, dtype=torch.float32)
    solve = Solve(f, z0, 1, solver, namespace).run()
    assert set(solve.status) <= {Status.DIVERGED, Status.NONFINITE}
    assert bool(torch.isfinite(solve.z).all())
    torch.testing.assert_close(residual_norm(solve.z, f(solve.z)), solve.buffers.residual)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_no_finite_evaluation_returns_the_start(namespace):
    z0 = torch.randn(3, 4)
    solve = Solve(lambda z: z * math.nan, z0, 1, Anderson(), namespace).run()
    assert solve.status == [Status.NONFINITE] * 3 and solve.steps == [1] * 3
    assert same(solve.z, z0) and bool(solve.buffers.residual.isnan().all())


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("solver", [Picard(), Anderson(), Auto()], ids=str)
@pytest.mark.parametrize("when", [1, 2, 5])
def test_one_nan_problem_leaves_the_others_untouched(solver, namespace, when):
    f = contraction(torch.float32, 5, 16)
    healthy = Solve(f, torch.zeros(5, 16), 1, solver, namespace).run()
    evaluations = 0

    def poisoned(z):
        nonlocal evaluations
        evaluations += 1
        fz = f(z).clone()
        if evaluations >= when:
            fz[2, 3] = math.nan
        return fz

    solve = Solve(poisoned, torch.zeros(5, 16), 1, solver, namespace).run()
    others = [0, 1, 3, 4]
    assert same(solve.z[others], healthy.z[others])
    assert [solve.steps[i] for i in others] == [healthy.steps[i] for i in others]
    assert solve.status[2] == Status.NONFINITE and bool(torch.isfinite(solve.z[2]).all())


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("max_steps", [1, 2, 3])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_few_steps(solver, max_steps, namespace):
    f = contraction(torch.float32, 3, 7)
    solve = Solve(f, torch.zeros(3, 7), 1, solver, namespace, max_steps=max_steps, rtol=1e-12).run()
    assert solve.steps == [max_steps] * 3 and solve.status == [Status.MAX_STEPS] * 3
    z = torch.zeros(3, 7)
    for _ in range(min(max_steps, 2) - 1):  # the first step is plain whatever the solver
        z = z + solver.damping * (f(z) - z)
    if max_steps < 3:
        torch.testing.assert_close(solve.z, z)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_min_steps(namespace):
    f = contraction(torch.float64, 3, 7)
    solve = Solve(f, torch.zeros(3, 7, dtype=torch.float64), 1, Anderson(), namespace, rtol=0.5, min_steps=6).run()
    assert solve.steps == [6] * 3 and solve.status == [Status.CONVERGED] * 3


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_constant_and_identity_maps(solver, namespace):
    target = torch.randn(4, 5)
    constant = Solve(lambda z: target, torch.zeros(4, 5), 1, solver, namespace, rtol=1e-6).run()
    torch.testing.assert_close(constant.z, target, rtol=1e-4, atol=1e-5)
    if solver.damping == 1:
        assert constant.steps == [2] * 4 and same(constant.z, target)
    z0 = torch.randn(4, 5)
    identity = Solve(lambda z: z, z0, 1, solver, namespace).run()
    assert same(identity.z, z0) and identity.steps == [1] * 4 and identity.status == [Status.CONVERGED] * 4


@needs_cpu
@pytest.mark.parametrize("exponent", [-60, -27, -8, 8, 27, 60])
def test_scale_changes_nothing(exponent):
    """Powers of two: the solve is the same to the bit, down to where squares of float32 states would vanish."""
    scale = 2.0**exponent
    for solver in (Anderson(), Auto(), Picard(0.5)):
        plain = Solve(contraction(torch.float32, 4, 12), torch.zeros(4, 12), 1, solver).run()
        scaled = Solve(contraction(torch.float32, 4, 12, scale=scale), torch.zeros(4, 12), 1, solver).run()
        assert plain.steps == scaled.steps and same(plain.z * scale, scaled.z)
        assert same(plain.buffers.residual, scaled.buffers.residual)


@needs_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [3, 100, 1000, 140_000])
def test_same_bits_on_any_number_of_threads_and_at_any_place(dtype, size):
    """Elementwise, so that the map itself rounds alike for every batch."""
    rate, shift = torch.rand(5, size).to(dtype) * 0.9, torch.randn(5, size).to(dtype)

    def solve(rows: list[int], threads: int) -> Solve:
        torch.set_num_threads(threads)
        f = lambda z: rate[rows] * z + shift[rows]  # noqa: E731
        return Solve(f, torch.zeros(len(rows), size, dtype=dtype), 1, Anderson(), rtol=1e-2, max_steps=12).run()

    whole = solve([0, 1, 2, 3, 4], 1)
    for rows, threads in (([0, 1, 2, 3, 4], 2), ([2], 1), ([2], 2), ([4, 2, 0], 3)):
        part = solve(rows, threads)
        assert same(part.z, whole.z[rows]) and same(part.buffers.residual, whole.buffers.residual[rows])
        assert part.steps == [whole.steps[i] for i in rows]


@needs_cpu
def test_history_wraps():
    """A ring much shorter than the solve gives what a history of that length gives in plain torch."""
    f = contraction(torch.float64, 2, 30)
    for history in (1, 2, 3, 7):
        solves = [
            Solve(f, torch.zeros(2, 30, dtype=torch.float64), 1, Anderson(history), namespace, rtol=1e-13)
            for namespace in NAMESPACES
        ]
        for _ in range(3 * history + 4):
            ours, theirs = (solve.advance() for solve in solves)
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@needs_cpu
def test_groups_mix_apart():
    """With one group a problem, a problem of several groups takes each group's own steps."""
    rate, shift = torch.tensor([0.9, 0.5, -0.7]).double(), torch.randn(3, 8).double()
    f = lambda z: rate[:, None] * z + shift  # noqa: E731
    options = {"solver": Anderson(2), "rtol": 1e-14}
    together = Solve(f, torch.zeros(1, 3, 8).double(), 3, **options)
    apart = Solve(f, torch.zeros(3, 8).double(), 1, **options)
    for _ in range(3):
        torch.testing.assert_close(together.advance()[0], apart.advance(), rtol=1e-12, atol=1e-12)


@given(
    problems=st.integers(0, 5),
    groups=st.integers(1, 4),
    entries=st.sampled_from([0, 1, 2, 7, 16, 31, 513]),
    history=st.integers(1, 32),
    solver=st.sampled_from([Picard, Anderson, Auto]),
    damping=st.sampled_from([1.0, 0.6]),
    dtype=st.sampled_from(DTYPES),
    keep_best=st.booleans(),
)
def test_any_shape(problems, groups, entries, history, solver, damping, dtype, keep_best):
    shift = torch.randn(problems, groups, entries).to(dtype)
    solver = Picard(damping) if solver is Picard else solver(history, damping)
    f = lambda z: 0.5 * z.roll(1, -1) + shift  # noqa: E731
    z0 = torch.zeros(problems, groups, entries, dtype=dtype)
    for namespace in NAMESPACES:
        rtol = 3e-2 if dtype.itemsize == 2 else 1e-4
        solve = Solve(f, z0, groups, solver, namespace, rtol=rtol, keep_best=keep_best)
        if problems:
            solve.run()
        assert solve.status == [Status.CONVERGED] * problems
        assert bool((residual_norm(solve.z, f(solve.z)) <= 1.1 * rtol).all())


def test_public_step_returns_the_buffers_of_the_next():
    f = contraction(torch.float64, 4, 6)
    z = torch.zeros(4, 6, dtype=torch.float64)
    buffers = step_buffers(z, 4, 1, Auto(), max_steps=50, trace=True)
    while buffers.active:
        done = public_step(z, f(z), buffers, rtol=1e-9)
        z, buffers = buffers.out, done
    assert buffers.status.tolist() == [Status.CONVERGED] * 4
    assert bool((residual_norm(z, f(z)) <= 1e-9).all())


def test_errors_name_the_argument():
    z = torch.zeros(4, 6)
    with pytest.raises(ValueError, match="z0 must divide into 5 problems"):
        step_buffers(z, 5, 1, Picard())
    with pytest.raises(ValueError, match="z0 must be contiguous"):
        step_buffers(z.T, 6, 1, Picard())
    buffers = step_buffers(z, 4, 1, Picard())
    with pytest.raises(TypeError, match="solver must be"):
        public_step(z, z, buffers, solver="picard")
    with pytest.raises(ValueError, match="fz must have z's shape"):
        residual_norm(z, z[:2])
    with pytest.raises(TypeError, match="fz must have z's dtype"):
        residual_norm(z, z.double())
    with pytest.raises(ValueError, match="batch_ndim"):
        residual_norm(z, z, 3)


@needs_cpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"fz": a["fz"].double()}, "fz must have the dtype of z"),
        (lambda a: a | {"fz": a["fz"][:, :3]}, "fz must be contiguous"),
        (lambda a: a | {"fz": a["fz"][:3]}, "fz must have 24 elements"),
        (lambda a: a | {"out": a["z"]}, "z and out must be different"),
        (lambda a: a | {"control": a["control"][:, :-1].clone()}, "control must have at least"),
        (lambda a: a | {"history": a["history"][:, :, :, :1]}, "history is too small"),
        (lambda a: a | {"trace": torch.zeros(3, 4)}, "trace must have at least"),
    ],
)
def test_the_kernel_touches_no_memory_it_was_not_given(change, message):
    z = torch.zeros(4, 6)
    buffers = step_buffers(z, 4, 1, Anderson(2))
    arguments = change({"z": z, "fz": torch.ones(4, 6), **buffers._asdict()})
    options = {"damping": 1.0, "ridge": 0.0, "rtol": 0.1, "atol": 0.0, "max_steps": 9, "min_steps": 0}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.attractor_kernels.anderson_step(**arguments, solver=1, **options, keep_best=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 70), (2, 70_000), (0, 4), (4, 0)])
def test_residual_norm(shape, dtype):
    z, fz = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    for batch_ndim in range(len(shape) + 1):
        f, g = (t.reshape(*shape[:batch_ndim], math.prod(shape[batch_ndim:])) for t in (fz.double(), fz.double() - z))
        r = g.norm(dim=-1)
        expected = torch.where(r == 0, 0.0, r / f.norm(dim=-1))
        for namespace in NAMESPACES:
            got = getattr(torch.ops, namespace).residual_norm(z, fz, batch_ndim)
            assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0.0)
    if len(shape) > 1:
        torch.testing.assert_close(residual_norm(z.mT, fz.mT), residual_norm(z.mT.contiguous(), fz.mT.contiguous()))


@pytest.mark.parametrize("batch_ndim", [0, 1, 2])
def test_residual_norm_gradients(batch_ndim):
    z, fz = (torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    f = lambda z, fz: residual_norm(z, fz, batch_ndim)  # noqa: E731
    assert torch.autograd.gradcheck(f, (z, fz))
    assert torch.autograd.gradgradcheck(f, (z, fz))
    at_rest = residual_norm(z, z.detach().clone()).sum()
    (grad,) = torch.autograd.grad(at_rest, z)
    assert bool((grad == 0).all())
