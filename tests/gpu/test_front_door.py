"""Gradients, memory and waiting, through `fixed_point` and `nn.FixedPoint`."""

import contextlib

import pytest
import torch
from solving import need, relative

import attractor_kernels as ak

pytestmark = pytest.mark.gpu
CELLS = {
    "affine": lambda dim: ak.nn.AffineCell(dim, 7, leak=0.1),
    "mlp": lambda dim: ak.nn.MLPCell(dim, 7, hidden_dim=dim + 3, activation="tanh", skip=0.1),
    "gated": lambda dim: ak.nn.GatedCell(dim, 7),
}
OPS = {"affine": "solve_affine", "mlp": "solve_mlp", "gated": "solve_gated"}
SOLVERS = [ak.Picard(), ak.Anderson(), ak.Auto()]
OPTIONS = dict(rtol=1e-6, max_steps=300)


def need_cell(backend, device, kind, dim, dtype=torch.float32):
    for suffix in ("", "_adjoint"):
        op = OPS[kind] + (suffix if kind != "affine" else "")
        need(backend, op, device, dtype, dim, dim + 3 if kind == "mlp" else 0, 5)


def solve_and_differentiate(cell, x, v, **options):
    z, info = ak.fixed_point(cell.bind(x), x.new_zeros(len(x), cell.state_dim), **{**OPTIONS, **options})
    return z, torch.autograd.grad(z, [x, *cell.parameters()], v), info


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("precision", ["full", "mixed"])
def test_gradients_of_cells(backend, device, kind, solver, precision):
    """Against float64 on the CPU."""
    dim, rows = 112 if precision == "mixed" else 40, 60  # large enough for products of changes
    need_cell(backend, device, kind, dim)
    cell, x, v = CELLS[kind](dim), 0.4 * torch.randn(rows, 7), torch.randn(rows, dim)  # gates stay open
    there = cell.double(), x.double().requires_grad_(), v.double()
    want = solve_and_differentiate(*there, solver=ak.Anderson(), backend="reference", rtol=1e-11)
    here = cell.float().to(device), x.to(device).requires_grad_(), v.to(device)
    z, got, info = solve_and_differentiate(*here, solver=solver, precision=precision, backend=backend)
    assert info.converged.all() and info.adjoint.converged.all()
    assert info.backend.startswith(backend)
    assert relative(z, want[0]) < 1e-4
    for a, b in zip(got, want[1], strict=True):
        assert relative(a, b) < 3e-4


@pytest.mark.parametrize("kind", CELLS)
def test_gradcheck_of_cells(backend, device, kind):
    """Against differences of the solve itself: in float32, so with long steps."""
    dim = 5
    need_cell(backend, device, kind, dim)
    cell = CELLS[kind](dim).to(device)
    x = torch.randn(4, 7, dtype=torch.float64)
    weight = next(p for name, p in cell.named_parameters() if name in ("weight", "w1")).detach().double().cpu()

    def solve(x, weight):
        name = "w1" if kind == "mlp" else "weight"
        given = {**dict(cell.named_parameters()), name: weight.to(device, torch.float32)}
        layer = ak.nn.FixedPoint(cell, solver=ak.Anderson(), backend=backend, precision="full", **OPTIONS)
        given = {f"module.{key}": value for key, value in given.items()}
        return torch.func.functional_call(layer, given, (x.to(device, torch.float32),)).double().cpu()

    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(solve, leaves, eps=1e-2, atol=5e-3, rtol=5e-3, nondet_tol=0.0)


def unknown(dim, device, dtype):
    generator = torch.Generator().manual_seed(dim)
    weight = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    weight = (0.7 * weight / torch.linalg.matrix_norm(weight, 2)).to(device, dtype).requires_grad_()
    u = torch.randn(6, dim, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
    return weight, u


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_gradcheck_of_an_unknown_map(backend, device, solver):
    """In float64, by the fused step where it has it."""
    need(backend, "anderson_step", device, torch.float64, 8, 0, 5)
    weight, u = unknown(8, device, torch.float64)

    def solve(weight, u):
        options = dict(solver=solver, rtol=1e-12, max_steps=300, backend=backend)
        return ak.fixed_point(lambda z: torch.tanh(z @ weight + u), torch.zeros_like(u), **options)[0]

    assert torch.autograd.gradcheck(solve, (weight, u), fast_mode=True)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("dim", [30, 6000])
def test_an_unknown_map(backend, device, solver, dim):
    need(backend, "anderson_step", device, torch.float32, dim, 0, 5)
    u = torch.randn(3, dim)

    def solve(u, **options):
        with torch.no_grad():
            return ak.fixed_point(lambda z: torch.tanh(0.6 * z.roll(1, 1) + u), torch.zeros_like(u), **options)

    z, info = solve(u.to(device), solver=solver, rtol=1e-6, max_steps=200, backend=backend)
    want, _ = solve(u.double(), solver=ak.Anderson(), rtol=1e-11, max_steps=500, backend="reference")
    assert info.converged.all()
    assert relative(z, want) < 1e-5


@contextlib.contextmanager
def no_waiting(device):
    """An error where the host waits for the device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_never_makes_the_host_wait(backend, device, kind):
    """Neither forward nor backward."""
    need_cell(backend, device, kind, 32)
    layer = ak.nn.FixedPoint(CELLS[kind](32), backend=backend).to(device)
    x = torch.randn(50, 7, device=device)
    layer(x).square().sum().backward()  # compiles what has to be
    with no_waiting(device):
        layer(x).square().sum().backward()
    assert layer.info.converged.all()


@pytest.mark.parametrize("kind", [*CELLS, "unknown"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_memory_does_not_grow_with_max_steps(backend, device, kind, solver):
    if device.type != "cuda":
        pytest.skip("tests/numerics/test_memory.py measures the CPU")
    dim, rows = 64, 4096  # a state is a MiB
    if kind == "unknown":
        need(backend, "anderson_step", device, torch.float32, dim, 0, 5)
        weight, leaf = unknown(dim, device, torch.float32)
        leaf = leaf.detach()[:1].repeat(rows, 1).requires_grad_()
        f = lambda z: torch.tanh(z @ weight + leaf)  # noqa: E731
    else:
        need_cell(backend, device, kind, dim)
        cell, x = CELLS[kind](dim).to(device), torch.randn(rows, 7, device=device)
        f = cell.bind(x)

    def peak(steps):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        options = dict(rtol=0.0, max_steps=steps, min_steps=steps, solver=solver, backend=backend)
        z, _ = ak.fixed_point(f, torch.zeros(rows, dim, device=device), **options)
        z.square().sum().backward(retain_graph=True)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    peak(8)
    assert peak(512) - peak(8) < 1 << 19


def test_a_stream_of_ones_own(backend, device):
    """Work is put on torch's current stream, after what is there."""
    if device.type != "cuda":
        pytest.skip("the CPU has no streams")
    need(backend, "solve_affine", device, torch.float32, 32, 0, 5)
    layer = ak.nn.FixedPoint(ak.nn.AffineCell(32, 7), backend=backend).to(device)
    x = torch.randn(2000, 7, device=device)
    with torch.no_grad():
        want = layer(x)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            late = torch.zeros_like(x).add_(x)
            got = layer(late)
        stream.synchronize()
    assert torch.equal(got, want)


def test_auto_takes_a_kernel(backend, device):
    bound = ak.nn.AffineCell(16, 7).to(device).bind(torch.randn(3, 7, device=device))
    z0 = torch.zeros(3, 16, device=device)
    with ak.use_backend(backend):
        assert ak.fixed_point(bound, z0)[1].backend.startswith(backend)
    assert ak.fixed_point(bound, z0)[1].backend != "reference"
