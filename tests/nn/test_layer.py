"""The FixedPoint layer."""

import copy
import pickle

import pytest
import torch
from torch import nn

import attractor_kernels as ak


class Net(nn.Module):
    def __init__(self, size=6):
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.orthogonal_(self.linear.weight, 0.5)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


def layers(**options):
    return ak.nn.FixedPoint(Net(), **options), ak.nn.FixedPoint(ak.nn.AffineCell(6, 6), **options)


def test_solves_its_module():
    x = torch.randn(5, 6)
    for layer in layers(rtol=1e-6):
        assert layer.info is None
        z = layer(x)
        torch.testing.assert_close(layer.module(z, x), z, rtol=1e-4, atol=1e-5)
        layer.info.raise_if_failed()
        z.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
        assert layer.info.adjoint.converged.all()


def test_start():
    x = torch.randn(5, 6)
    for layer in layers(rtol=1e-5):
        cold = layer(x)
        cold_steps = layer.info.steps
        warm = layer(x, z0=cold.detach())
        assert (layer.info.steps < cold_steps).all()
        torch.testing.assert_close(warm, cold, rtol=1e-3, atol=1e-4)


def test_a_module_can_say_where_to_start():
    class Started(Net):
        def initial_state(self, x):
            return torch.ones_like(x)

    layer = ak.nn.FixedPoint(Started(), max_steps=1)
    assert (layer(torch.randn(5, 6)) == 1).all()


def test_a_cell_gives_what_fixed_point_gives():
    x = torch.randn(3, 5, 6)
    cell = ak.nn.AffineCell(6, 6)
    layer = ak.nn.FixedPoint(cell, batch_ndim=2, keep="best", trace=True, solver=ak.Anderson(3))
    z = layer(x)
    expected, info = ak.fixed_point(
        cell.bind(x), torch.zeros(3, 5, 6), batch_ndim=2, keep="best", trace=True, solver=ak.Anderson(3)
    )
    assert torch.equal(z, expected) and torch.equal(layer.info.steps, info.steps)
    torch.testing.assert_close(layer.info.trace, info.trace, equal_nan=True)


def test_copies():
    x = torch.randn(5, 6)
    for layer in layers():
        z = layer(x)
        z.sum().backward()
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x), z)
            assert list(other.state_dict()) == list(layer.state_dict())
        assert "solver=Auto" in repr(layer)


def test_precision_is_decided_anew_by_every_forward():
    layer = ak.nn.FixedPoint(ak.nn.AffineCell(6, 6))
    x = torch.randn(5, 6)
    full = layer(x)
    torch.set_float32_matmul_precision("medium")
    torch.testing.assert_close(layer(x), full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_of_halves(dtype):
    torch.manual_seed(0)
    cell = ak.nn.AffineCell(128, 6, dtype=dtype)
    x = torch.randn(5, 6, dtype=dtype)
    default, mixed, full = (
        ak.nn.FixedPoint(cell, precision=precision, rtol=1e-5)(x) for precision in (None, "mixed", "full")
    )
    assert torch.equal(default, mixed)
    torch.testing.assert_close(default, full)


def test_autocast():
    x = torch.randn(5, 6)
    for solver in (ak.Auto(), ak.Broyden()):
        layer = ak.nn.FixedPoint(ak.nn.AffineCell(6, 6), solver=solver)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = layer(x)
        assert z.dtype == torch.float32
        torch.testing.assert_close(z, layer(x), rtol=5e-2, atol=5e-2)


def test_wrong_modules_and_options():
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module mapping \(z, x\) to z, got <function"):
        ak.nn.FixedPoint(lambda z, x: z)
    with pytest.raises(TypeError, match="tol"):
        ak.nn.FixedPoint(Net(), tol=1e-3)
    with pytest.raises(TypeError, match="positional"):
        ak.nn.FixedPoint(Net(), ak.Auto())
