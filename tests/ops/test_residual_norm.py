"""The operator `residual_norm` on a device, against plain torch in float64 on the host."""

from __future__ import annotations

import pytest
import torch

import attractor_kernels as ak

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "batch_ndim"),
    [((7, 0), 1), ((5, 1), 1), ((9, 512), 1), ((3, 4, 513), 2), ((300, 4096), 1), ((2, 1_000_003), 1), ((4099,), 0)],
    ids=str,
)
def test_on_a_device(dtype, shape, batch_ndim):
    """A warp a problem, a block, and chunks dealt to blocks; rows aligned and not."""
    if not (usable := ak.backends.available()["cuda"]):
        pytest.skip(usable.reason)
    z, fz = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    expected = torch.ops.attractor_kernels_reference.residual_norm(z.double(), fz.double(), batch_ndim)
    on_device = z.cuda(), fz.cuda()
    found = ak.ops.residual_norm(*on_device, batch_ndim)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=TOLERANCE[dtype], atol=0)
    assert torch.equal(ak.ops.residual_norm(*on_device, batch_ndim), found)
    assert not bool(ak.ops.residual_norm(on_device[0], on_device[0].clone(), batch_ndim).any())
