"""The slopes an affine adjoint begins with: the compiled pass against float64 formulas."""

from __future__ import annotations

import pytest
import torch
from operators import NAMESPACES

from attractor_kernels.backends.reference.activations import CODES, PARTIAL_RELU, SWIGLU, derivative

KINDS = [code for code in CODES.values() if code != SWIGLU]
# Of a slope, whose size is about 1, in the units of its dtype.
PLACES = {torch.float32: 16, torch.float64: 16, torch.bfloat16: 1, torch.float16: 1}


def slopes(namespace: str, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    result: tuple[torch.Tensor, torch.Tensor] = getattr(torch.ops, namespace).affine_slope(*arguments)
    return result


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("dtype", PLACES)
@pytest.mark.parametrize("code", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (3, 64), (0, 8), (700, 61)])
def test_formulas(namespace: str, dtype: torch.dtype, code: int, shape: tuple[int, int]) -> None:
    a, v, scale = (2 * torch.randn(shape, dtype=torch.float64) for _ in range(3))
    a, v, scale = a.to(dtype), v.to(dtype), scale.to(dtype)
    pieces = shape[1] // 3 if code == PARTIAL_RELU else 0
    expected = derivative(code, a.double(), pieces) * scale.double()
    d, dv = slopes(namespace, a, v, scale, code, pieces)
    assert d.dtype == dv.dtype == dtype and d.shape == dv.shape == shape
    unit = PLACES[dtype] * torch.finfo(dtype).eps
    size = (1 + scale.double().abs()) * (1 + a.double().abs())
    assert ((d.double() - expected).abs() <= unit * size).all()
    assert ((dv.double() - expected * v.double()).abs() <= unit * size * (1 + v.double().abs())).all()


@pytest.mark.parametrize("code", KINDS)
def test_without_scale_and_strided(code: int) -> None:
    wide = torch.randn(40, 6)
    a, v = wide.t()[:, ::2], torch.randn(1, 20).expand(6, 20)
    plain = slopes("attractor_kernels", a.contiguous(), v.contiguous(), torch.ones(6, 20), code, 0)
    for got, want in zip(slopes("attractor_kernels", a, v, None, code, 0), plain, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("code", KINDS)
def test_a_row_does_not_depend_on_the_batch(code: int) -> None:
    a, v = torch.randn(3000, 45), torch.randn(3000, 45)
    whole = slopes("attractor_kernels", a, v, None, code, 7 if code == PARTIAL_RELU else 0)
    alone = slopes("attractor_kernels", a[1234:1235], v[1234:1235], None, code, 7 if code == PARTIAL_RELU else 0)
    for got, want in zip(alone, whole, strict=True):
        assert torch.equal(got[0], want[1234])


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "silu", "relu2"])
def test_nan_goes_through(name: str) -> None:
    a = torch.tensor([[0.5, float("nan"), -0.5]])
    d, dv = slopes("attractor_kernels", a, torch.ones(1, 3), None, CODES[name], 0)
    assert d.isnan().tolist() == dv.isnan().tolist() == [[False, True, False]]


def test_wrong_shapes_are_refused() -> None:
    a = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="v must have shape"):
        slopes("attractor_kernels", a, torch.zeros(2, 4), None, 1, 0)
    with pytest.raises(RuntimeError, match="pieces must be between 0 and 3"):
        slopes("attractor_kernels", a, a, None, PARTIAL_RELU, 4)
