"""The CUDA backend where there is none: what is said, what is loaded, which devices its code fits."""

import pytest
import torch

import attractor_kernels as ak
from attractor_kernels.backends import cuda, registry

ALL = "8.0 9.0a 10.0+PTX"


@pytest.mark.parametrize(
    ("architectures", "capability", "fits"),
    [
        (ALL, (7, 5), False),
        (ALL, (8, 0), True),
        (ALL, (8, 9), True),
        (ALL, (9, 0), True),
        (ALL, (10, 0), True),
        (ALL, (10, 3), True),
        (ALL, (12, 0), True),  # by the text that +PTX adds
        ("9.0a", (9, 0), True),
        ("9.0a", (10, 0), False),
        ("9.0a+PTX", (10, 0), False),  # that text too is for one device
        ("8.6", (8, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("10.0f", (10, 3), True),
        ("10.0f+PTX", (12, 0), False),
        ("", (9, 0), False),
    ],
)
def test_which_devices_the_code_fits(architectures, capability, fits):
    assert cuda.runs_on(architectures, capability) == fits


def test_availability_has_a_reason():
    usable, reason = ak.backends.available()["cuda"]
    if torch.version.cuda is None:
        assert not usable
        assert "without CUDA" in reason
    elif not torch.cuda.is_available():
        assert not usable
        assert reason == "torch sees no CUDA device" or "no CUDA kernels" in reason


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_the_library_is_not_loaded_where_torch_has_no_cuda():
    assert not any(path.endswith("_cuda.so") for path in torch.ops.loaded_libraries)
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("attractor_kernels::anderson_step", "CUDA")


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
def test_the_library_loads_where_torch_has_cuda():
    assert "does not load" not in ak.backends.available()["cuda"].reason


def test_operators_it_lacks_go_elsewhere():
    assert registry.backend_for("solve_affine", "auto", torch.device("meta"), torch.float32) == "reference"
    assert "the state is on" in (cuda.obstacle("solve_affine", torch.device("cpu"), torch.float32) or "") or (
        torch.version.cuda is None
    )


@pytest.mark.parametrize("entries", [0, 1, 4096, 4097, 1 << 24, (1 << 24) + 1, 10**8])
def test_control_has_room_for_every_chunk(entries):
    # csrc/cuda/anderson_step.h: at most 4096 chunks of a group
    chunk = ak.ops.anderson_step.__globals__["_chunk"](entries, torch.device("cuda"))
    assert chunk >= 4096
    assert -(-entries // chunk) <= 4096
    assert chunk == 4096 or chunk // 2 * 4096 < entries
