"""The kernels' own activations against float64: a few units in the last place, over the whole range.

With W = 0 the fixed point of the affine cell is phi(u) itself, reached from 0 without rounding.
"""

import numpy as np
import pytest
import torch
from maps import BACKENDS
from scipy import special

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def gelu(x):
    return x * special.ndtr(x)


EXACT = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": special.expit,
    "softplus": lambda x: np.logaddexp(x, 0),
    "gelu": gelu,
    "silu": lambda x: x * special.expit(x),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def evaluate(name: str, x: torch.Tensor, backend: str, pieces: int = 0) -> torch.Tensor:
    zero = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
    with ak.use_backend(backend):
        result = ak.ops.solve_affine(
            torch.zeros_like(x), x, zero, activation=name, pieces=pieces, solver=ak.Picard(), rtol=0.0, max_steps=4
        )
    return result.z


def grid(dtype: torch.dtype) -> torch.Tensor:
    """Magnitudes from 1e-30 to 80, both signs, dense where the functions bend; rows of odd length.

    In random order, with a 1 in every row: a row's norm then is an ordinary number.
    """
    magnitudes = torch.cat(
        [torch.logspace(-30, -3, 400), torch.linspace(1e-3, 12, 6001), torch.linspace(12, 80, 600)]
    ).double()
    both = torch.cat([-magnitudes, torch.zeros(1), magnitudes]).to(dtype)
    both = both[torch.randperm(both.numel(), generator=torch.Generator().manual_seed(0))]
    rows = both[: both.numel() // 10 * 10].view(-1, 10)
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=dtype)], dim=1)


def last_places(got: torch.Tensor, exact: np.ndarray) -> np.ndarray:
    """Errors in units in the last place of the exact result; below 1e-28 (1e-280) in units of that bound's."""
    values = got.numpy()
    bound = 1e-28 if values.dtype == np.float32 else 1e-280
    unit = np.spacing(np.maximum(np.abs(exact), bound).astype(values.dtype)).astype(np.float64)
    return np.abs(values.astype(np.float64) - exact) / unit


@pytest.mark.parametrize("name", EXACT)
def test_float32(backend, name):
    """gelu's tail, exp(-x^2 / 2), multiplies the rounding of its exponent."""
    x = grid(torch.float32)
    error = last_places(evaluate(name, x, backend), EXACT[name](x.double().numpy()))
    if name == "gelu":
        error = error / np.maximum(1, x.numpy() ** 2)
    worst = error.argmax()
    assert error.max() <= 6, f"{error.max():.1f} units at {x.flatten()[worst].item()!r}"


@pytest.mark.parametrize("name", EXACT)
def test_float64(backend, name):
    """Against scipy, itself good to a few units."""
    x = grid(torch.float64)
    exact = EXACT[name](x.numpy())
    error = last_places(evaluate(name, x, backend), exact)
    if name == "gelu":
        error = error / np.maximum(1, x.numpy() ** 2)
    worst = error.argmax()
    assert error.max() <= 10, f"{error.max():.1f} units at {x.flatten()[worst].item()!r}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_half(backend, name, dtype):
    """Computed in float32 and rounded once (the reference rounds its own way: two units)."""
    x = torch.linspace(-9, 9, 1100).to(dtype).view(-1, 11)
    exact = torch.from_numpy(EXACT[name](x.double().numpy())).to(dtype)
    torch.testing.assert_close(evaluate(name, x, backend), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("pieces", [0, 1, 4, 11])
def test_partial_relu_rectifies_the_last_units(backend, pieces):
    x = grid(torch.float32)
    expected = x.clone()
    expected[:, 11 - pieces :].clamp_(min=0)
    assert torch.equal(evaluate("partial_relu", x, backend, pieces), expected)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_and_infinity(backend, name, dtype):
    """A NaN stays in its own row; the saturating functions take infinities to their limits."""
    x = torch.tensor([[0.5, float("nan")], [1.0, -1.0], [float("inf"), 1.0], [2.0, float("-inf")]], dtype=dtype)
    zero = torch.zeros(2, 2, dtype=dtype)
    with ak.use_backend(backend):
        result = ak.ops.solve_affine(torch.zeros_like(x), x, zero, activation=name, solver=ak.Picard(), max_steps=4)
    assert result.status[0] == ak.Status.NONFINITE and result.status[1] == ak.Status.CONVERGED
    assert result.z.isfinite().all()
    if name in ("tanh", "sigmoid"):
        assert result.status[2:].tolist() == [ak.Status.CONVERGED] * 2
        limits = {"tanh": (1.0, -1.0), "sigmoid": (1.0, 0.0)}[name]
        assert (result.z[2, 0].item(), result.z[3, 1].item()) == pytest.approx(limits, abs=1e-30)
