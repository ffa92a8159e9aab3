"""A layer and its twin that the host drives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import attractor_kernels as ak

SOLVERS = [ak.Picard(), ak.Picard(0.7), ak.Anderson(), ak.Anderson(2, 0.8), ak.Auto()]

needs_kernels = pytest.mark.skipif(not ak.backends.available()["cpu"], reason="needs the compiled kernels")


class Net(nn.Module):
    def __init__(self, size: int = 6, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size, dtype=dtype)
        nn.init.orthogonal_(self.linear.weight, 0.7)
        self.gain = 1.0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.gain * self.linear(z) + x)


def twins(module: nn.Module, **options) -> tuple[ak.nn.FixedPoint, ak.nn.FixedPoint]:
    """A layer whose solves are recorded where that can be, and the same driven from the host."""
    options = {"rtol": 1e-8, "max_steps": 100, **options}
    return ak.nn.FixedPoint(module, **options), ak.nn.FixedPoint(copy.deepcopy(module), graph=False, **options)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def assert_same_solve(layer: ak.nn.FixedPoint, plain: ak.nn.FixedPoint, *given: Tensor) -> None:
    z, expected = layer(*given), plain(*given)
    assert torch.equal(z, expected)
    for name in ("steps", "residual", "status"):
        assert torch.equal(getattr(layer.info, name), getattr(plain.info, name)), name
    if plain.info.trace is not None:
        torch.testing.assert_close(layer.info.trace, plain.info.trace, rtol=0, atol=0, equal_nan=True)
