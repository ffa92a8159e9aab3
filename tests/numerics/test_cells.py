"""Cells against the same map written out in plain torch, in float64 unless said otherwise."""

import functools

import pytest
import torch
from cells import ALL, KINDS, make_cell, plain_map
from maps import BACKENDS, HALVES, assert_same_bits, true_residual

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
every_cell = pytest.mark.parametrize("name", ALL)
solvers = pytest.mark.parametrize(
    "solver", [ak.Picard(), ak.Anderson(), ak.Anderson(2, 0.8), ak.Auto()], ids=["picard", "anderson", "damped", "auto"]
)
SIZE, INPUTS, ROWS = 11, 4, 9
COTANGENT = torch.linspace(-1, 1, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)


def inputs(dtype=torch.float64, rows=ROWS):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, INPUTS, dtype=torch.float64, generator=generator).to(dtype)


def unrolled(cell, x, steps=250, injected=None):
    f = plain_map(cell, x, injected)
    z = torch.zeros(len(x), cell.state_dim, dtype=x.dtype)
    for _ in range(steps):
        z = f(z)
    return z


@functools.cache
def solution(name):
    """The form's fixed point and the gradients of its inner product with COTANGENT, in float64."""
    cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs().requires_grad_()
    z = unrolled(cell, x)
    return z.detach(), torch.autograd.grad((z * COTANGENT).sum(), (x, *cell.parameters()))


@every_cell
def test_one_evaluation(backend, name):
    cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs()
    z = torch.randn(ROWS, SIZE, dtype=torch.float64)
    torch.testing.assert_close(cell(z, x), plain_map(cell, x)(z), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(cell.bind(x)(z), cell(z, x), rtol=0, atol=0)


@every_cell
@solvers
def test_solution(backend, name, solver):
    cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs()
    f = plain_map(cell, x)
    for rtol in (1e-4, 1e-12):
        layer = ak.nn.FixedPoint(cell, solver=solver, rtol=rtol, max_steps=400, backend=backend)
        with torch.no_grad():
            z = layer(x)
        assert layer.info.backend == backend
        assert layer.info.converged.all(), layer.info.residual
        torch.testing.assert_close(layer.info.residual.double(), true_residual(f, z), rtol=1e-3, atol=1e-14)
        assert (layer.info.residual <= rtol).all()
    torch.testing.assert_close(z, solution(name)[0], rtol=1e-10, atol=1e-10)


@every_cell
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Anderson(1), ak.Anderson(12)], ids=repr)
def test_fused_steps_are_those_of_the_plain_map(backend, name, solver):
    """The same map as a callable takes the same steps to the same values: one set of semantics."""
    cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs()
    options = dict(solver=solver, rtol=1e-8, max_steps=100, trace=True)
    with torch.no_grad():
        z, info = ak.fixed_point(
            plain_map(cell, x), torch.zeros(ROWS, SIZE, dtype=torch.float64), backend="reference", **options
        )
        layer = ak.nn.FixedPoint(cell, backend=backend, **options)
        fused = layer(x)
    assert torch.equal(layer.info.steps, info.steps)
    assert torch.equal(layer.info.status, info.status)
    torch.testing.assert_close(fused, z, rtol=1e-7, atol=1e-9)
    assert torch.equal(layer.info.trace.isnan(), info.trace.isnan())
    torch.testing.assert_close(layer.info.trace, info.trace, rtol=1e-2, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("limit", [1, 3, 6])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("name", KINDS)
@solvers
def test_early_stop(backend, name, keep, limit, solver):
    """Value and info of a fused solve out of steps belong to one iterate; the gradient is linearised there."""
    cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs()
    start = torch.linspace(-2, 2, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    layer = ak.nn.FixedPoint(
        cell,
        solver=solver,
        rtol=0.0,
        max_steps=limit,
        keep=keep,
        trace=True,
        backend=backend,
        gradient=ak.Implicit(rtol=1e-13, max_steps=3000),
    )
    leaf = x.clone().requires_grad_()
    z = layer(leaf, start)
    info = layer.info
    torch.testing.assert_close(info.residual.double(), true_residual(plain_map(cell, x), z), rtol=1e-4, atol=1e-14)
    for row in range(ROWS):
        assert info.trace[info.steps[row] - 1, row] == info.residual[row]
        if keep == "best":
            assert info.residual[row] == info.trace[:, row].nan_to_num(nan=9e9).min()
        else:
            assert info.steps[row] == limit
    v = torch.linspace(1, 2, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    got = torch.autograd.grad((z * v).sum(), (leaf, *cell.parameters()))

    at = z.detach()
    f = plain_map(cell, x)
    by_z = torch.autograd.functional.jacobian(f, at)[range(ROWS), :, range(ROWS)]
    w = torch.linalg.solve((torch.eye(SIZE, dtype=torch.float64) - by_z).mT, v)
    expected = torch.autograd.grad((plain_map(cell, leaf)(at) * w).sum(), (leaf, *cell.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@every_cell
@solvers
def test_gradients(backend, name, solver):
    cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs()
    layer = ak.nn.FixedPoint(cell, solver=solver, rtol=1e-13, max_steps=400, backend=backend)
    leaf = x.clone().requires_grad_()
    got = torch.autograd.grad((layer(leaf) * COTANGENT).sum(), (leaf, *cell.parameters()))
    for (key, _), a, b in zip([("x", leaf), *cell.named_parameters()], got, solution(name)[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    assert layer.info.adjoint.converged.all()


MODES = [ak.OneStep(), ak.Phantom(3, 0.7), ak.Neumann(2), ak.Neumann(2, clip=0.1), ak.Unrolled(), ak.Unrolled(2)]


@pytest.mark.parametrize("options", MODES, ids=repr)
@pytest.mark.parametrize("name", KINDS)
def test_other_modes_are_those_of_the_plain_map(backend, name, options):
    cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs()
    common = dict(solver=ak.Picard(), gradient=options, rtol=1e-11, max_steps=200)
    results = []
    for fused in (True, False):
        leaf = x.clone().requires_grad_()
        if fused:
            z = ak.nn.FixedPoint(cell, backend=backend, **common)(leaf)
        else:
            start = torch.zeros(ROWS, SIZE, dtype=torch.float64)
            z, _ = ak.fixed_point(plain_map(cell, leaf), start, backend="reference", **common)
        results.append(torch.autograd.grad(z.pow(2).sum(), (leaf, *cell.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@every_cell
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "full"), (torch.float32, "mixed"), *((dtype, None) for dtype in HALVES)]
)
def test_lower_precision_against_float64(backend, name, dtype, precision):
    """The cell's own (rounded) parameters in float64 are the truth; 16-bit states are solved in float32."""
    cell, x = make_cell(name, SIZE, INPUTS, dtype), inputs(dtype)
    rtol = 1e-5 if dtype == torch.float32 else 1e-3
    layer = ak.nn.FixedPoint(cell, rtol=rtol, max_steps=100, precision=precision, backend=backend)
    with torch.no_grad():
        z = layer(x)
    assert z.dtype == dtype and layer.info.converged.all()
    # What the input adds is rounded to the state's dtype before the solve.
    exact = unrolled(cell, x.double())
    close = 10 * rtol + (4 * torch.finfo(dtype).eps if dtype in HALVES else 0)
    torch.testing.assert_close(z.double(), exact, rtol=close, atol=close * exact.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_lower_precision_gradients(backend, name, dtype):
    exact_cell = make_cell(name, SIZE, INPUTS, torch.float64)
    cell = make_cell(name, SIZE, INPUTS, dtype)
    exact_cell.load_state_dict({k: t.double() for k, t in cell.state_dict().items()})
    x, v = inputs(dtype), torch.linspace(0.5, 1, ROWS * SIZE).view(ROWS, SIZE)
    layer = ak.nn.FixedPoint(cell, rtol=1e-6 if dtype == torch.float32 else 1e-4, max_steps=200, backend=backend)
    leaf, exact_leaf = x.clone().requires_grad_(), x.double().requires_grad_()
    got = torch.autograd.grad((layer(leaf).float() * v).sum(), (leaf, *cell.parameters()))
    # At a kink of relu a rounded input has another derivative, so both sides start from the rounded one.
    z = unrolled(exact_cell, exact_leaf, injected=cell.inject(x).detach())
    expected = torch.autograd.grad((z * v.double()).sum(), (exact_leaf, *exact_cell.parameters()))
    allowed = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    if "layer" in name:  # a layer norm divides by the spread of a few entries, and multiplies their rounding
        allowed *= 6
    for (key, _), a, b in zip([("x", leaf), *cell.named_parameters()], got, expected, strict=True):
        assert a.dtype == dtype
        # A kink crossed by rounding changes a derivative by a finite amount: measured as a whole.
        assert (a.double() - b).norm() <= allowed * (b.norm() + 1e-3), key


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto()], ids=["picard", "anderson", "auto"])
def test_mixed_precision_meets_the_same_true_residual(backend, name, solver):
    """Of each kernel; test_mixed.py goes further for the affine cell's."""
    size = 96
    cell, x = make_cell(name, size, INPUTS, torch.float32), inputs(torch.float32, rows=50)
    f = plain_map(cell, x.double())
    layer = ak.nn.FixedPoint(cell, solver=solver, rtol=1e-5, max_steps=100, precision="mixed", backend=backend)
    with torch.no_grad():
        z = layer(x)
    assert layer.info.converged.all()
    assert (true_residual(f, z.double()) <= 1.1e-5).all()
    torch.testing.assert_close(z.double(), unrolled(cell, x.double()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_start_given(backend, name):
    """From the solution itself one step is enough, and the value is the start to the bit."""
    cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs()
    layer = ak.nn.FixedPoint(cell, rtol=1e-10, max_steps=200, backend=backend)
    with torch.no_grad():
        z = layer(x)
        again = layer(x, z)
    assert_same_bits(again, z)
    assert (layer.info.steps == 1).all()


@pytest.mark.parametrize("name", ["affine-tanh", "gated"])
@pytest.mark.parametrize("kind", ["transposed", "strided"])
def test_weights_of_any_strides(backend, name, kind):
    cell, x = make_cell(name, SIZE, INPUTS, torch.float32), inputs(torch.float32)
    layer = ak.nn.FixedPoint(cell, rtol=1e-6, backend=backend)
    z = layer(x).detach()
    weight = cell.weight.data
    if kind == "transposed":
        cell.weight.data = weight.mT.contiguous().mT
    else:
        cell.weight.data = torch.stack([weight, torch.full_like(weight, torch.nan)], dim=-1)[..., 0]
    assert not cell.weight.is_contiguous()
    again = layer(x).detach()
    if backend == "reference":  # a library product's order of summation follows the strides
        torch.testing.assert_close(again, z, rtol=1e-5, atol=1e-6)
    else:
        assert_same_bits(again, z)


def test_weights_changed_in_place_are_seen(backend):
    """Packed weights may be kept between forward and backward, never beyond a change of the weights."""
    for name in ("affine-tanh", "mlp-relu", "gated"):
        cell, x = make_cell(name, SIZE, INPUTS, torch.float64), inputs()
        layer = ak.nn.FixedPoint(cell, rtol=1e-12, max_steps=200, backend=backend)
        first = layer(x).detach()
        with torch.no_grad():
            for p in cell.parameters():
                p.mul_(0.5)
        second = layer(x).detach()
        assert not torch.allclose(first, second)
        torch.testing.assert_close(second, unrolled(cell, x).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("near_one", [0.9, 0.999])
def test_leak_near_one(backend, near_one):
    """A slow leak in some units (a line attractor's neighbour): value and gradients, the leak's own included."""
    cell = make_cell("affine-leaky", 5, INPUTS, torch.float64)
    with torch.no_grad():
        cell.leak.copy_(torch.tensor([near_one, 0.1, 0.3, 0.0, near_one]))
        cell.weight.mul_(0.2).sub_(0.5 * torch.eye(5))
    x = inputs()
    layer = ak.nn.FixedPoint(cell, solver=ak.Anderson(5), rtol=1e-13, max_steps=400, backend=backend)
    leaf = x.clone().requires_grad_()
    z = layer(leaf)
    got = torch.autograd.grad(z.pow(2).sum(), (leaf, *cell.parameters()))
    expected_z = unrolled(cell, leaf, 3000)
    torch.testing.assert_close(z, expected_z, rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(expected_z.pow(2).sum(), (leaf, *cell.parameters()))
    for (key, _), a, b in zip([("x", leaf), *cell.named_parameters()], got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=lambda m, key=key: f"{key}: {m}")
