"""Auto corrects the rows of MLP and gated cells by Newton steps too, with the cell's whole derivative in 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cells import ALL, make_cell, solve_places
from maps import BACKENDS, family
from mixed import has_few_bits
from torch import Tensor

import attractor_kernels as ak

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the compiled kernels")
both = pytest.mark.parametrize("precision", ["mixed", "full"])
CELLS = [name for name in ALL if not name.startswith("affine")]
ROWS, INPUTS, RTOL = 41, 5, 1e-5

# Orthogonal recurrent weights of this size: Picard steps contract slowly, but they do.
GAIN = {
    "mlp-relu2": 0.35,
    "mlp-layer": 0.45,
    "mlp-rms": 0.45,
    "mlp-rms-leaky": 0.3,
    "mlp-leaky": 0.75,
    "mlp-skip": 0.65,
    "mlp-swiglu": 0.6,
}


def problem_of(name: str, size: int, rows: int = ROWS) -> tuple[ak.nn.Cell, Tensor]:
    """A cell in float64 and its inputs, small and large; what float32 holds."""
    cell = make_cell(name, size, INPUTS, torch.float64)
    generator = torch.Generator().manual_seed(size)
    for key, p in cell.named_parameters():
        if p.dim() == 2 and key != "input_weight":
            q = torch.linalg.qr(torch.randn(max(p.shape), max(p.shape), dtype=torch.float64, generator=generator))[0]
            p.data = GAIN.get(name, 0.92) * q[: p.shape[0], : p.shape[1]]
        p.data = p.data.float().double()
    x = torch.randn(rows, INPUTS, dtype=torch.float64, generator=generator)
    x *= torch.logspace(-2, 0.5, rows, dtype=torch.float64)[:, None]
    return cell, x.float().double()


def in_float32(cell: ak.nn.Cell) -> ak.nn.Cell:
    return copy.deepcopy(cell).float()


def iterate(step: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    for _ in range(5000):
        last, z = z, step(z)
        assert z.isfinite().all()
        if (z - last).norm() <= 1e-12 * z.norm():
            return z
    raise AssertionError("Picard steps do not converge")


def truth(cell: ak.nn.Cell, x: Tensor, v: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The fixed point, and the gradients of <v, z> by x and the parameters, from the equations they satisfy."""
    with torch.no_grad():
        z = iterate(lambda z: cell(z, x), x.new_zeros(len(x), cell.state_dim))
    z.requires_grad_()
    x = x.detach().requires_grad_()
    f = cell(z, x)
    w = iterate(lambda w: torch.autograd.grad(f, z, w, retain_graph=True)[0] + v, v)
    return z.detach(), list(torch.autograd.grad(f, [x, *cell.parameters()], w))


def solve(cell: ak.nn.Cell, x: Tensor, z0: Tensor | None = None, **options):
    z0 = x.new_zeros(len(x), cell.state_dim) if z0 is None else z0
    return ak.fixed_point(cell.bind(x), z0, **dict(rtol=RTOL, max_steps=200, backend="cpu", solver=ak.Auto()) | options)


def relative(z: Tensor, expected: Tensor) -> Tensor:  # of each row
    return (z.double() - expected).norm(dim=-1) / expected.norm(dim=-1)


def check(cell: ak.nn.Cell, x: Tensor, v: Tensor, truth: tuple[Tensor, list[Tensor]], tolerance: float, **options):
    """Solves, compares the solution and all gradients, and returns how it went."""
    expected, gradients = truth
    x = x.requires_grad_()
    z, info = solve(cell, x, **options)
    assert info.converged.all()
    assert relative(z.detach(), expected).max() < tolerance
    z.backward(v)
    for mine, theirs in zip([x, *cell.parameters()], gradients, strict=True):
        assert (mine.grad.double() - theirs).norm() < 10 * tolerance * theirs.norm()
    return info


def cotangents(size: int) -> Tensor:
    return torch.linspace(-1, 1, ROWS * size, dtype=torch.float64).view(ROWS, size)


@pytest.mark.parametrize("size", [57, 64, 130])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("precision", ["mixed", "full", "float64"])
def test_the_solution_and_its_gradients(name, size, precision):
    """Of every form, against float64; in few evaluations. The adjoint solve takes Newton steps of its own."""
    cell, x = problem_of(name, size)
    v = cotangents(size)
    known = truth(cell, x, v)
    if precision == "float64":
        info = check(cell, x, v, known, 1e-7, rtol=1e-9)
        options = dict(rtol=1e-9)
    else:
        cell, x, v = in_float32(cell), x.float(), v.float()
        info = check(cell, x, v, known, 3e-4, precision=precision)
        options = {}
    if has_few_bits():
        with torch.no_grad():
            _, picard = solve(cell, x, solver=ak.Picard(), max_steps=1000, **options)
        # A norm makes the first steps from zero go far, and few of them may be Newton's.
        if picard.steps.double().mean() > 25 and name not in ("mlp-layer", "mlp-rms-leaky"):
            assert info.steps.max() <= (8 if precision != "float64" else 15)
        assert info.steps.double().mean() < picard.steps.double().mean()


@pytest.mark.parametrize("size", [57, 64, 121])
@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-swiglu", "gated"])
@both
def test_sparse_weights(name, size, precision):
    """Few large entries in a row, which digits do not hold, but 8 bits do: other products than those of the others."""
    cell, x = problem_of(name, size)
    generator = torch.Generator().manual_seed(7)
    for key, p in cell.named_parameters():
        if p.dim() == 2 and key != "input_weight":
            kept = torch.rand(p.shape, generator=generator) < 2.5 / size
            values = torch.randn(p.shape, dtype=torch.float64, generator=generator) * kept
            p.data = (0.8 * values / torch.linalg.matrix_norm(values, 2)).float().double()
    v = cotangents(size)
    known = truth(cell, x, v)
    for rows in (slice(None), slice(0, 1), slice(0, 5), slice(0, 17)):
        with torch.no_grad():
            z, info = solve(cell.float(), x[rows].detach().float(), precision=precision)
        assert info.converged.all()
        assert relative(z, known[0][rows]).max() < 3e-4
    info = check(cell.float(), x.detach().float(), v.float(), known, 3e-4, precision=precision)
    assert info.steps.max() <= (9 if has_few_bits() else 60)
    assert info.adjoint.steps.max() <= (9 if has_few_bits() else 60)


@pytest.mark.parametrize("name", ["mlp-swiglu", "mlp-layer", "gated"])
@both
def test_tangents(name, precision):
    """Where gradients are differentiated once more, y = J y + v is solved for by Newton steps too."""
    size = 65
    cell, x = problem_of(name, size)
    v, w = (
        torch.randn(ROWS, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (size, INPUTS)
    )

    def tangent(cell, x, v, w, **options):
        x, v = x.detach().requires_grad_(), v.requires_grad_()
        z, _ = solve(cell, x, **options)
        (gradient,) = torch.autograd.grad(z, x, v, create_graph=True)
        return torch.autograd.grad(gradient, v, w)[0]  # dz/dx w

    exact = ak.Implicit(rtol=1e-12, max_steps=2000, solver=ak.Picard())
    expected = tangent(
        cell, x, v, w, rtol=1e-12, backend="reference", solver=ak.Picard(), max_steps=2000, gradient=exact
    )
    found = tangent(in_float32(cell), x.float(), v.float(), w.float(), precision=precision)
    assert relative(found, expected).max() < 1e-3


def gated_with(candidate: Tensor, gate: Tensor | None = None) -> ak.nn.GatedCell:
    size = len(candidate)
    cell = ak.nn.GatedCell(size, 2 * size, bias=False)
    cell.input_weight.data = torch.eye(2 * size)
    cell.weight.data = torch.cat([torch.zeros_like(candidate) if gate is None else gate, candidate])
    return cell


@pytest.mark.parametrize("size", [64, 129])
@pytest.mark.parametrize("kind", ["sym", "leak", "gate"])
@both
def test_diagonals_that_stand_out_of_a_gated_cell(kind, size, precision):
    """8 bits would hold little else: they are multiplied apart, forward and in the adjoint."""
    weight, u = family("sym" if kind == "sym" else "orth", ROWS, size, torch.float32)
    gate = None
    if kind != "sym":
        weight = 0.1 * weight - 0.8 * torch.eye(size)
    if kind == "gate":
        gate, weight = weight, 0.5 * weight
    x = torch.cat([torch.ones_like(u), u], -1)
    cell = gated_with(weight, gate)
    expected, (gradient, *_) = truth(copy.deepcopy(cell).double(), x.double(), torch.ones_like(u, dtype=torch.float64))
    z, info = solve(cell, x.requires_grad_(), precision=precision)
    assert info.converged.all()
    assert relative(z.detach(), expected).max() < 3e-4
    z.sum().backward()
    assert relative(x.grad, gradient).max() < 1e-3
    if has_few_bits():
        assert info.steps.max() <= 7


@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.parametrize("kind", ["mlp", "gated"])
@both
def test_near_a_fixed_point_that_f_leads_away_from(kind, size, precision):
    """tanh(2 z) has 0, which repels, and +-0.9575. The equations say so, and the row goes on without Newton steps."""
    eye = torch.eye(size)
    if kind == "mlp":
        cell = ak.nn.MLPCell(size, size, hidden_dim=size, activation="tanh", bias=False, norm="none", skip=0.0)
        state = {"input_weight": eye, "w1": 2 * eye, "w2": eye}
        cell.load_state_dict({name: state[name] for name in cell.state_dict()})
        x = torch.zeros(33, size)
    else:
        cell, x = gated_with(2 * eye), torch.zeros(33, 2 * size)
    z0 = torch.rand(33, size).add(0.5).mul(1e-3) * torch.randn(33, 1).sign()
    with torch.no_grad():
        z, info = solve(cell, x, z0, precision=precision, max_steps=500)
    assert info.converged.all()
    # Anderson, which Auto takes to then, may end at either, after long.
    roots = torch.tensor([-0.9575040240772687, 0.0, 0.9575040240772687])
    assert (z[..., None] - roots).abs().amin(-1).max() < 1e-4


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("name", ["mlp-tanh", "gated"])
@both
def test_out_of_steps_between_newton_steps(name, limit, precision):
    cell, x = problem_of(name, 96)
    with torch.no_grad():
        z, info = solve(cell.float(), x.float(), max_steps=limit, rtol=1e-7, precision=precision)
    assert (info.steps == limit).all()
    assert (info.status == ak.Status.MAX_STEPS).all()
    assert z.isfinite().all()


@pytest.mark.parametrize("size", [64, 130])
@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-swiglu", "mlp-layer", "gated"])
@both
def test_a_row_keeps_its_bits(name, size, precision):
    """Alone, in any batch and on any number of threads."""
    rows = 53
    cell, x = problem_of(name, size, rows)
    cell = cell.float()
    with torch.no_grad():
        u = cell.inject(x.float())  # once: a library product's bits depend on the batch

    def run(places: Tensor, threads: int):
        torch.set_num_threads(threads)
        return solve_places(cell, u, places, rtol=RTOL, precision=precision, backend="cpu")

    whole = run(torch.arange(rows), 2)
    assert len(whole[1].unique()) > 1  # rows leave the tile at different steps
    for threads, places in [
        (1, torch.arange(rows)),
        (2, torch.randperm(rows)),
        *((1, torch.arange(n)) for n in (3, 4, 5, 17, 33)),
        *((1, torch.tensor([k])) for k in range(0, rows, 13)),
    ]:
        for mine, theirs in zip(run(places, threads), whole, strict=True):
            assert torch.equal(mine, theirs[places])
