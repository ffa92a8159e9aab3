"""The compiled CUDA library against its budget, where the tools that read it are installed.

A change that costs a kernel registers changes csrc/cuda/budget.json with it:
python tools/cuda_resources.py attractor_kernels/_cuda.so --write csrc/cuda/budget.json
"""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUDGET = json.loads((ROOT / "csrc/cuda/budget.json").read_text())

_spec = importlib.util.spec_from_file_location("cuda_resources", ROOT / "tools/cuda_resources.py")
assert _spec is not None and _spec.loader is not None
cuda_resources = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cuda_resources)


@pytest.fixture(scope="module")
def found():
    """The library built last: beside the sources, or on its way into a wheel."""
    places = [*ROOT.glob("attractor_kernels/_cuda.so"), *ROOT.glob("build/lib*/attractor_kernels/_cuda.so")]
    if not places:
        pytest.skip("the CUDA library is not built: nvcc was not found, or FORCE_CUDA=0")
    if missing := cuda_resources.missing_tools():
        pytest.skip(f"not on PATH, nor installed by pip: {', '.join(missing)}")
    return cuda_resources.resources(max(places, key=lambda path: path.stat().st_mtime))


def test_every_kernel_is_budgeted(found):
    assert set(found) == set(BUDGET)


@pytest.mark.parametrize("kernel", BUDGET)
def test_kernel_keeps_its_budget(found, kernel):
    for architecture, takes in found[kernel].items():
        where = f"{kernel} on {architecture}"
        assert takes["stack"] == takes["local_bytes"] == takes["local"] == 0, f"{where} uses local memory"
        allowed = BUDGET[kernel].get(architecture)
        if allowed is None:  # TORCH_CUDA_ARCH_LIST named another
            continue
        assert takes["registers"] <= allowed["registers"], where
        assert takes["shared"] <= allowed["shared"], where
        assert takes["warps"] >= allowed["warps"], where


# A cluster meets in shared memory, and newer devices move 32 bytes of a crew's doubles at once.
WIDE = [
    name
    for name in BUDGET
    if name.startswith(("solve", "crew_grid_kernel<float")) or (name.startswith("step") and ", 1, " not in name)
]


@pytest.mark.parametrize("kernel", WIDE)
def test_aligned_steps_move_16_bytes_at_once(found, kernel):
    # A pass over a chunk loads z, f, the residual before and five of the ring.
    for architecture, takes in found[kernel].items():
        if kernel.endswith(", 2>") and architecture != "sm_90a":  # wgmma, which no plan takes there
            continue
        assert takes["wide_loads"] >= 8, f"{kernel} on {architecture}"
        assert takes["wide_stores"] >= 3, f"{kernel} on {architecture}"


def test_mixed_solves_multiply_on_tensor_cores(found):
    # The last argument is a ProductKind (csrc/cuda/row_plan.h).
    by_warps, by_groups = (
        [kernel for kernel in found if kernel.startswith("solve") and kernel.endswith(f", {kind}>")] for kind in (1, 2)
    )
    assert by_warps and by_groups
    for kernel, by_architecture in found.items():
        for architecture, takes in by_architecture.items():
            where = f"{kernel} on {architecture}"
            # Two stages, each 2 halves of the inputs by 2 tiles of outputs by 1 or 4 times 8 rows.
            assert (takes["tensor"] >= 8) == (kernel in by_warps), where
            assert (takes["group"] >= 1) == (kernel in by_groups and architecture == "sm_90a"), where
