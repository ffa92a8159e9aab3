"""The affine cell's rows corrected by one inverse for all of them: where it helps, and where it is not to be had."""

from __future__ import annotations

import pytest
import torch
from cells import PHI
from maps import BACKENDS, family
from mixed import RTOL, Problem, assert_honest, has_few_bits, problem_of

import attractor_kernels as ak

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the compiled kernels")
SIZES = [1, 2, 5, 16, 17, 32, 33, 48, 56]  # side by side; beyond, Newton steps
BEYOND = [57, 96, 128, 255]


def solve(problem: Problem, **options):
    return problem.solve("cpu", options.pop("solver", ak.Auto()), **options)


@pytest.mark.parametrize("size", [8, 16, 32, 47])
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_few_steps(kind, size):
    problem = problem_of(kind, size)
    z, info = solve(problem)
    _, picard = solve(problem, solver=ak.Picard())
    assert info.converged.all()
    assert_honest(problem, z, info)
    assert 2 * info.steps.float().mean() < picard.steps.float().mean()


@pytest.mark.parametrize("size", [8, 32])
def test_few_steps_in_float64(size):
    weight, u = family("orth", 61, size, torch.float64)
    problem = Problem(weight, u, torch.zeros_like(u))
    z, info = solve(problem, rtol=1e-12, max_steps=400)
    _, picard = solve(problem, rtol=1e-12, max_steps=400, solver=ak.Picard())
    assert info.converged.all()
    assert problem.judge(z)[0].max() <= 1e-12 * (1 + 1e-3)
    assert 2 * info.steps.float().mean() < picard.steps.float().mean()


@pytest.mark.parametrize("size", SIZES + BEYOND)
@pytest.mark.parametrize("activation", sorted(PHI))
def test_every_activation_and_a_leak(size, activation):
    base = problem_of("orth", size, rows=19)
    for leak in (None, 0.4, -0.5, 0.99):
        # Slopes up to 1.13, and relu2's, which know no bound
        gain = (0.2 if activation == "relu2" else 0.8) * (1 - abs(leak or 0))
        problem = Problem(base.weight * gain, base.u.clamp(-1, 1), base.z0, activation, leak)
        z, info = solve(problem, max_steps=3000)
        assert info.converged.all()
        if z.any(-1).all():  # 0 / 0
            assert_honest(problem, z, info)


def mixture(size: int, gain: float, dtype: torch.dtype = torch.float32) -> Problem:
    """Rows that converge at once, slowly, and not at all."""
    weight, u = family("orth", 61, size, dtype)
    u = u * torch.logspace(-3, 1, 61, dtype=dtype)[:, None]
    z0 = torch.where(torch.arange(61)[:, None] % 3 == 0, 0.5 * u.roll(1, 0), torch.zeros_like(u))
    return Problem(weight / 0.9 * gain, u, z0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("gain", [0.9, 1.05, 1.3, 1.45, 2.5])
@pytest.mark.parametrize("size", SIZES + BEYOND)
def test_a_row_alone_and_among_others(size, gain, dtype):
    """To the last bit, also where corrections fail and rows go back to their best iterate."""
    problem = mixture(size, gain, dtype)
    options = dict(max_steps=70, trace=True, rtol=1e-5 if dtype == torch.float32 else 1e-9)
    z, info = solve(problem, **options)
    for rows in (slice(0, 1), slice(60, 61), slice(7, 12), slice(20, 41), torch.arange(60, -1, -1)):
        part, part_info = solve(problem, rows=rows, **options)
        assert torch.equal(part, z[rows])
        assert torch.equal(part_info.steps, info.steps[rows])
        assert torch.equal(part_info.status, info.status[rows])
        torch.testing.assert_close(part_info.trace, info.trace[:, rows], rtol=0, atol=0, equal_nan=True)
    if dtype == torch.float32:
        assert_honest(problem, z, info)


@pytest.mark.parametrize("size", [17, 32, 100])
def test_no_worse_than_without(size):
    """W from a contraction to far from one: what Picard steps solve is solved, and in no more steps by much."""
    for gain in (0.3, 0.9, 1.0, 1.1, 1.2):
        problem = mixture(size, gain)
        _, picard = solve(problem, solver=ak.Picard(), precision="full", max_steps=300)
        z, info = solve(problem, max_steps=300)
        assert info.converged[picard.converged].all()
        assert_honest(problem, z, info)
        both = info.converged & picard.converged
        assert info.steps[both].float().mean() <= picard.steps[both].float().mean() + 1


@pytest.mark.parametrize("size", [24, 64, 256])
def test_what_is_kept_of_weights_is_theirs(size):
    """The inverse is kept from call to call while W stays the same; no call sees another's."""
    base = problem_of("sym", size, rows=20)
    other, changed = base.weight.mT.flip(0).contiguous(), base.weight.clone()
    changed[-1, -1] += 2**-12
    weights = {"base": base.weight, "other": other, "changed": changed, "turned": base.weight.mT, "zero": 0 * other}
    first = {name: solve(Problem(w, base.u, base.z0)) for name, w in weights.items()}
    for name in ("base", "base", "changed", "base", "other", "zero", "turned", "changed", "other", "base"):
        again, info = solve(Problem(weights[name], base.u, base.z0))
        assert torch.equal(again, first[name][0]), name
        assert torch.equal(info.steps, first[name][1].steps), name
    assert not torch.equal(first["changed"][0], first["base"][0])
    in_place = base.weight.clone()
    solve(Problem(in_place, base.u, base.z0))
    in_place[-1, -1] += 2**-12
    assert torch.equal(solve(Problem(in_place, base.u, base.z0))[0], first["changed"][0])
    leaky, _ = solve(Problem(base.weight, base.u, base.z0, leak=0.25))
    assert not torch.equal(leaky, first["base"][0])
    assert torch.equal(solve(Problem(base.weight, base.u, base.z0, leak=0.25))[0], leaky)


@pytest.mark.parametrize("size", [24, 64])
@pytest.mark.parametrize("entry", [float("nan"), float("inf"), 1e38])
def test_weights_without_an_inverse(size, entry):
    problem = problem_of("orth", size, rows=20)
    weight = problem.weight.clone()
    weight[0, -1] = entry
    _, info = solve(Problem(weight, problem.u, problem.z0))
    if entry == entry:  # tanh takes what overflows
        assert (info.steps >= 1).all()
    else:
        assert not info.converged.any()
    clean, _ = solve(problem)
    assert clean.isfinite().all()


@pytest.mark.parametrize("size", [16, 48, 64, 256])
def test_gradients(size):
    problem = problem_of("orth", size)
    cell = ak.nn.AffineCell(size, 1, dtype=torch.float32)
    cell.weight.data = problem.weight
    u = problem.u.clone().requires_grad_()
    z, info = ak.fixed_point(cell.bind_injection(u), problem.z0, rtol=1e-6, max_steps=150, backend="cpu")
    v = torch.linspace(-1, 1, z.numel()).view_as(z)
    got = torch.autograd.grad(z, (u, cell.weight), v)
    slope = 1 - z.detach().double().square()
    system = torch.eye(size, dtype=torch.float64) - slope[:, :, None] * problem.weight.double()
    y = slope * torch.linalg.solve(system.mT, v.double())
    torch.testing.assert_close(got[0].double(), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1].double(), y.mT @ z.detach().double(), rtol=1e-3, atol=1e-3)
    assert info.adjoint is not None and info.adjoint.converged.all()
    if has_few_bits():
        assert info.adjoint.steps.max() <= 30
    assert info.converged.all() and info.residual.max() < RTOL
