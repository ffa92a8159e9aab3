"""Scale (NUMERICS): x -> s f(x / s) takes the same steps to the same relative result; so does a gradient."""

import functools

import pytest
import torch
from maps import BACKENDS, FLOATS, SOLVERS, assert_same_bits, family

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)
families = pytest.mark.parametrize("kind", ["orth", "sym"])


@functools.cache
def scaled_solve(kind, scale, solver, backend, dtype, rtol):
    weight, u = family(kind, 6, 24, dtype)

    def f(z):
        return scale * torch.tanh((z / scale) @ weight.mT + u)

    z0 = torch.full((6, 24), 0.1, dtype=dtype) * scale
    return ak.fixed_point(f, z0, solver=solver, backend=backend, rtol=rtol, max_steps=200)


@every_solver
@families
@floats
@pytest.mark.parametrize("exponent", [-27, 27])
def test_power_of_two_changes_no_bit(backend, solver, kind, dtype, exponent):
    """2^-27 and 2^27 (about 1e-8 and 1e8) round nothing in the map: no digit of the solve may depend on them."""
    plain, info = scaled_solve(kind, 1.0, solver, backend, dtype, 1e-5)
    z, scaled = scaled_solve(kind, 2.0**exponent, solver, backend, dtype, 1e-5)
    assert info.converged.all() and torch.equal(scaled.steps, info.steps)
    assert_same_bits(z * 2.0**-exponent, plain)
    assert_same_bits(scaled.residual, info.residual)


@every_solver
@families
@floats
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_any_scale(backend, solver, kind, dtype, scale):
    """At scales that do round, a residual may cross the tolerance one step apart, not more."""
    rtol = 1e-5
    plain, info = scaled_solve(kind, 1.0, solver, backend, dtype, rtol)
    z, scaled = scaled_solve(kind, scale, solver, backend, dtype, rtol)
    assert scaled.converged.all()
    assert (scaled.steps - info.steps).abs().max() <= 1
    torch.testing.assert_close(z / scale, plain, rtol=0, atol=30 * rtol * plain.abs().max().item())


@pytest.mark.parametrize("exponent", [-27, 27])
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto()])
def test_bfloat16_scales_too(backend, solver, exponent):
    """bfloat16 has float32's range, so squares of 1e-8 must not vanish on the way (float16 has no such states)."""
    plain, info = scaled_solve("sym", 1.0, solver, backend, torch.bfloat16, 2e-2)
    z, scaled = scaled_solve("sym", 2.0**exponent, solver, backend, torch.bfloat16, 2e-2)
    assert info.converged.all() and torch.equal(scaled.steps, info.steps)
    assert_same_bits(z * 2.0**-exponent, plain)


@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto()])
def test_float16_keeps_its_smallest_and_largest_states(backend, solver):
    """Sums of squares of float16 states overflow or vanish in float16; accumulated wider they do neither."""
    plain, info = scaled_solve("sym", 1.0, solver, backend, torch.float16, 5e-3)
    for exponent in (-6, 8):
        z, scaled = scaled_solve("sym", 2.0**exponent, solver, backend, torch.float16, 5e-3)
        assert scaled.converged.all()
        assert (scaled.steps - info.steps).abs().max() <= 1
        torch.testing.assert_close(z / 2.0**exponent, plain, rtol=0, atol=3e-2)


GRADIENTS = {
    "implicit": ak.Implicit(),
    "implicit-anderson": ak.Implicit(solver=ak.Anderson()),
    "onestep": ak.OneStep(),
    "phantom": ak.Phantom(3, 0.7),
    "neumann": ak.Neumann(4),
    "unrolled": ak.Unrolled(),
}


@functools.cache
def gradient(factor, options, backend, dtype, solver=ak.Anderson()):
    weight, u = family("sym", 5, 16, dtype)
    weight.requires_grad_()
    u.requires_grad_()
    z, _ = ak.fixed_point(
        lambda z: torch.tanh(z @ weight.mT + u),
        torch.zeros(5, 16, dtype=dtype),
        solver=solver,
        gradient=options,
        backend=backend,
        rtol=1e-6,
        max_steps=100,
    )
    target = torch.linspace(-1, 1, 80, dtype=dtype).view(5, 16)
    return torch.autograd.grad(((z - target) ** 2).sum() * factor, (weight, u))


@floats
@pytest.mark.parametrize("options", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("exponent", [-27, 27])
def test_loss_scale_changes_no_bit_of_the_gradient(backend, dtype, options, exponent):
    plain = gradient(1.0, options, backend, dtype)
    for a, b in zip(plain, gradient(2.0**exponent, options, backend, dtype), strict=True):
        assert_same_bits(b * 2.0**-exponent, a)


@floats
@pytest.mark.parametrize("factor", [1e-8, 1e8])
@every_solver
def test_loss_scale_scales_the_gradient(backend, dtype, factor, solver):
    plain = gradient(1.0, ak.Implicit(), backend, dtype, solver)
    for a, b in zip(plain, gradient(factor, ak.Implicit(), backend, dtype, solver), strict=True):
        torch.testing.assert_close(b / factor, a, rtol=1e-4, atol=1e-5 * a.abs().max().item())


@floats
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto()])
def test_mean_loss_over_many_entries_at_1e_8(backend, dtype, solver):
    """Cotangents of 1e-16, residuals of 1e-22: their squares are no float32 numbers, the gradient still is right."""
    plain = gradient(1.0, ak.Implicit(), backend, dtype, solver)
    for a, b in zip(plain, gradient(2.0**-53, ak.Implicit(), backend, dtype, solver), strict=True):
        torch.testing.assert_close(b * 2.0**53, a, rtol=1e-4, atol=1e-5 * a.abs().max().item())


@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto()])
@pytest.mark.parametrize("exponent", [-27, 27])
@floats
def test_fused_homogeneous_cell(backend, solver, exponent, dtype):
    """leak z + relu(z W^T + u) scales with u: the fused solve takes the same steps to the same bits."""
    cell = ak.nn.AffineCell(12, 12, activation="relu", bias=False).to(dtype)
    weight, u = family("sym", 7, 12, dtype)
    with torch.no_grad():
        cell.weight.copy_(weight)
        cell.input_weight.copy_(torch.eye(12, dtype=dtype))
        layer = ak.nn.FixedPoint(cell, solver=solver, rtol=1e-5, max_steps=200, backend=backend)
        plain = layer(u)
        info = layer.info
        z = layer(u * 2.0**exponent)
    assert info.converged.all() and torch.equal(layer.info.steps, info.steps)
    assert_same_bits(z * 2.0**-exponent, plain)


@pytest.mark.parametrize("exponent", [-27, 27, -53])
@pytest.mark.parametrize("kind", ["orth", "sym"])
@floats
def test_loss_scale_through_a_fused_cell(backend, exponent, kind, dtype):
    cell = ak.nn.AffineCell(16, 16, bias=False).to(dtype)
    weight, u = family(kind, 5, 16, dtype)
    with torch.no_grad():
        cell.weight.copy_(weight)
        cell.input_weight.copy_(torch.eye(16, dtype=dtype))
    layer = ak.nn.FixedPoint(cell, rtol=1e-6, max_steps=200, backend=backend)

    def grads(factor):
        x = u.clone().requires_grad_()
        return torch.autograd.grad(layer(x).pow(2).sum() * factor, (x, cell.weight, cell.input_weight))

    for a, b in zip(grads(1.0), grads(2.0**exponent), strict=True):
        torch.testing.assert_close(b * 2.0**-exponent, a, rtol=1e-4, atol=1e-5 * a.abs().max().item())
        if exponent > -53:
            assert_same_bits(b * 2.0**-exponent, a)


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("solver", [ak.Picard, ak.Anderson])
def test_a_start_far_above_the_map(solver, damping, backend):
    """z is 1e39 times f(z), whose own size would scale z out of float32's range."""
    target = 1e-29 * torch.linspace(1, 2, 40)
    z, info = ak.fixed_point(
        lambda z: target + 1e-12 * z,
        torch.full((3, 40), 1e10),
        solver=solver(damping=damping),
        rtol=1e-5,
        max_steps=400,
        backend=backend,
    )
    assert info.converged.all()
    torch.testing.assert_close(z, target.expand(3, 40), rtol=1e-4, atol=0)
