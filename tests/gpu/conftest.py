"""Every test here runs on a CUDA device, once for each backend with kernels; --device cpu: on the CPU backend."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "ops")]

BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS[metafunc.config.getoption("--device")])


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))
