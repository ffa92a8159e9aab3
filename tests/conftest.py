"""What every test starts from: a fixed seed, a fixed thread count, one hypothesis profile."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="where the tests of tests/gpu run; cpu puts the CPU backend in the GPU's place, to prove the tests",
    )
    parser.addoption("--triton", metavar="VERSION", help="fail unless this version of Triton is the one that is tested")


def pytest_configure(config):
    wanted = config.getoption("--triton")
    if wanted is None:
        return
    import triton

    if triton.__version__ != wanted:
        raise pytest.UsageError(f"--triton {wanted}: {triton.__file__} is version {triton.__version__}")


def pytest_runtest_setup(item):
    wanted = item.get_closest_marker("gpu") is not None and item.config.getoption("--device") == "cuda"
    if wanted and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _same_start():
    """No test sees another's random state, default dtype, thread count or product precision.

    One thread: nearly all of these problems are too small for two, which would wait for each other on a busy machine.
    The tests of threads set their own number.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dtype = torch.get_default_dtype()
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
