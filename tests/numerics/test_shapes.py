"""Shapes, strides, dtypes and options at random: whatever is allowed gives what the float64 solution says."""

import math

import pytest
import torch
from cells import FUSED, make_cell, plain_map
from hypothesis import assume, given
from hypothesis import strategies as st
from maps import BACKENDS, CLOSE, TIGHT, assert_same_bits

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

sizes = st.sampled_from([1, 2, 3, 5, 7, 13, 16, 17, 31, 33, 64, 97])
# A norm of so few entries leaves nothing but a sign: such a map may have two fixed points, each as good as the other.
SIGNS = {("mlp-layer", 2), ("mlp-rms", 1), ("mlp-rms-leaky", 1)}
counts = st.sampled_from([0, 1, 2, 3, 7, 11, 17, 48, 53])
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
solvers = st.one_of(
    st.builds(ak.Picard, st.floats(0.4, 1.0)),
    st.builds(ak.Anderson, st.integers(1, 8), st.floats(0.5, 1.0), st.sampled_from([0.0, 1e-8, 1e-6])),
    st.builds(ak.Auto, st.integers(1, 8)),
)
any_solver = st.one_of(solvers, st.builds(ak.Broyden, st.integers(1, 20)))
layouts = st.sampled_from(["contiguous", "transposed", "strided", "offset"])


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in other strides."""
    if layout == "transposed" and x.ndim >= 2:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "offset":
        flat = torch.full((x.numel() + 3,), math.nan, dtype=x.dtype)
        flat[3:] = x.flatten()
        return flat[3:].view(x.shape)
    return x.contiguous()


def solution(f, rows: int, size: int) -> torch.Tensor:
    """By 120 steps of f in float64, for maps that contract fast enough for that: a norm of few entries may not."""
    z = torch.zeros(rows, size, dtype=torch.float64)
    for _ in range(119):
        z = f(z)
    fz = f(z)
    assume(bool(((fz - z).norm(dim=-1) <= 1e-12 * fz.norm(dim=-1)).all()))
    return fz


@given(
    batch=st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=4),
    state=st.lists(st.sampled_from([1, 2, 3, 7]), min_size=1, max_size=3),
    dtype=dtypes,
    solver=any_solver,
    layout=layouts,
    keep=st.sampled_from(["best", "last"]),
    data=st.data(),
)
def test_elementwise_map(backend, batch, state, dtype, solver, layout, keep, data):
    """z -> cos(z) / 2 + shift, per entry: any batch and state shape, any number of mixing dimensions."""
    mixing = data.draw(st.integers(len(batch), len(batch) + len(state) - 1))
    shape = (*batch, *state)
    shift = torch.linspace(0, 1, math.prod(shape), dtype=torch.float64).view(shape)
    z0 = laid_out(torch.zeros(shape, dtype=dtype), layout)
    narrow = shift.to(dtype)
    z, info = ak.fixed_point(
        lambda z: torch.cos(z) / 2 + narrow,
        z0,
        solver=solver,
        rtol=TIGHT[dtype],
        max_steps=150,
        batch_ndim=len(batch),
        mixing_ndim=mixing,
        keep=keep,
        backend=backend,
    )
    assert z.shape == shape and z.dtype == dtype
    assert info.steps.shape == tuple(batch)
    assert info.converged.all(), (info.status, info.residual)
    exact = shift.clone()
    for _ in range(80):
        exact = torch.cos(exact) / 2 + narrow.double()
    torch.testing.assert_close(z.double(), exact, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@given(
    name=st.sampled_from(FUSED),
    size=sizes,
    rows=counts,
    inputs=st.sampled_from([1, 2, 6]),
    dtype=dtypes,
    solver=solvers,
    layout=layouts,
    expand=st.booleans(),
)
def test_fused_cells(backend, name, size, rows, inputs, dtype, solver, layout, expand):
    """Each cell at primes, 1 and 0, for inputs of any strides and broadcast ones, against the float64 solution."""
    assume((name, size) not in SIGNS)
    cell = make_cell(name, size, inputs, dtype)
    x = torch.randn(1 if expand else rows, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    with torch.no_grad():
        u = cell.inject(laid_out(x.to(dtype), layout))
        # One row's bits for all, which a library product of equal rows need not have.
        u = u.expand(rows, -1) if expand else laid_out(u, layout)
        exact = solution(plain_map(cell, x.to(dtype).double().expand(rows, inputs), u), rows, size)
    z, info = ak.fixed_point(
        cell.bind_injection(u),
        torch.zeros(rows, size, dtype=dtype),
        solver=solver,
        rtol=TIGHT[dtype],
        max_steps=500,
        keep="best",
        backend=backend,
    )
    assert z.shape == (rows, size) and z.dtype == dtype
    assert info.steps.shape == (rows,)
    # At its rounding level a row may stop short of the tightest tolerance; it says so.
    assert set(info.status.tolist()) <= {ak.Status.CONVERGED, ak.Status.STAGNATED}, (info.status, info.residual)
    scale = exact.abs().max().clamp(min=1.0) if rows else torch.tensor(1.0)
    torch.testing.assert_close(z.double() / scale, exact / scale, rtol=0, atol=4 * CLOSE[dtype])
    if expand and rows and backend != "reference":
        assert_same_bits(z, z[:1].expand(rows, size))


@given(
    name=st.sampled_from(FUSED),
    size=st.sampled_from([1, 3, 8, 17, 33]),
    rows=st.sampled_from([0, 1, 3, 17, 49]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    solver=solvers,
    layout=layouts,
)
def test_fused_gradients(backend, name, size, rows, dtype, solver, layout):
    """Implicit gradients of a cell against a long unrolling of the plain map in float64."""
    cell = make_cell(name, size, 2, dtype)
    x = laid_out(torch.randn(rows, 2, dtype=dtype, generator=torch.Generator().manual_seed(rows)), layout)
    v = torch.linspace(-1, 1, rows * size, dtype=dtype).view(rows, size)
    exact_cell = make_cell(name, size, 2, torch.float64)
    exact_cell.load_state_dict({k: t.double() for k, t in cell.state_dict().items()})
    exact_inputs = x.double().requires_grad_()
    z = solution(plain_map(exact_cell, exact_inputs, cell.inject(x).detach()), rows, size)

    layer = ak.nn.FixedPoint(cell, solver=solver, rtol=TIGHT[dtype], max_steps=500, backend=backend)
    inputs = x.clone().requires_grad_()
    got = torch.autograd.grad((layer(inputs) * v).sum(), (inputs, *cell.parameters()))
    expected = torch.autograd.grad((z * v.double()).sum(), (exact_inputs, *exact_cell.parameters()))
    for a, b in zip(got, expected, strict=True):
        scale = b.abs().max().clamp(min=1.0) if b.numel() else torch.tensor(1.0)
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=20 * CLOSE[dtype])


@given(
    size=st.sampled_from([1, 2, 5, 16, 33]),
    leading=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5),
    name=st.sampled_from(FUSED),
)
def test_many_leading_dimensions(backend, size, leading, name):
    """Leading dimensions of an input are batch dimensions, and change no bit of any row."""
    cell = make_cell(name, size, 4, torch.float32)
    x = torch.randn(*leading, 4)
    layer = ak.nn.FixedPoint(cell, rtol=1e-5, backend=backend, batch_ndim=len(leading))
    with torch.no_grad():
        z = layer(x)
        steps = layer.info.steps
        flat_layer = ak.nn.FixedPoint(cell, rtol=1e-5, backend=backend)
        flat = flat_layer(x.reshape(-1, 4))
    assert z.shape == (*leading, size) and steps.shape == tuple(leading)
    assert_same_bits(z.view(-1, size), flat)
    assert torch.equal(steps.flatten(), flat_layer.info.steps)


def test_huge_leading_dimension(backend):
    """A quarter of a million problems of one entry: index arithmetic, and steps per problem that differ."""
    rows = 1 << 18
    rate = torch.linspace(0.1, 0.8, rows)[:, None]
    z, info = ak.fixed_point(lambda z: rate * z + 1, torch.zeros(rows, 1), rtol=1e-5, max_steps=100, backend=backend)
    assert info.converged.all()
    torch.testing.assert_close(z, 1 / (1 - rate), rtol=1e-4, atol=0)
    cell = make_cell("affine-tanh", 2, 1, torch.float32)
    layer = ak.nn.FixedPoint(cell, rtol=1e-5, max_steps=100, backend=backend)
    with torch.no_grad():
        x = torch.linspace(-2, 2, rows)[:, None]
        z = layer(x)
        ends = layer(x[[0, -1]])
    torch.testing.assert_close(z[[0, -1]], ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_start_is_not_written_to(backend, dtype):
    z0 = torch.zeros(1, 4, dtype=dtype).expand(3, 4)
    shift = torch.linspace(0, 1, 12, dtype=dtype).view(3, 4)
    _z, info = ak.fixed_point(lambda z: torch.cos(z) / 2 + shift, z0, rtol=1e-5, backend=backend)
    assert (z0 == 0).all() and info.converged.all()
    cell = make_cell("affine-tanh", 4, 2, dtype)
    start = torch.full((3, 4), 0.5, dtype=dtype)
    ak.nn.FixedPoint(cell, backend=backend)(torch.ones(3, 2, dtype=dtype), start)
    assert (start == 0.5).all()


def test_map_may_write_to_its_own_output_only(backend):
    """A map that returns the same buffer every time: the solver keeps no reference to it."""
    buffer = torch.empty(3, 4, dtype=torch.float64)
    shift = torch.linspace(0, 1, 12, dtype=torch.float64).view(3, 4)

    def f(z):
        with torch.no_grad():
            return torch.add(torch.cos(z) / 2, shift, out=buffer)

    for solver in (ak.Picard(), ak.Anderson(), ak.Auto(), ak.Broyden()):
        z, info = ak.fixed_point(f, torch.zeros(3, 4, dtype=torch.float64), solver=solver, rtol=1e-10, backend=backend)
        assert info.converged.all()
        expected, _ = ak.fixed_point(
            lambda z: torch.cos(z) / 2 + shift,
            torch.zeros(3, 4, dtype=torch.float64),
            solver=solver,
            rtol=1e-10,
            backend=backend,
        )
        assert_same_bits(z, expected)
