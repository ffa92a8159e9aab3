"""The kernels of the fused step compile for sm_80, sm_90 and sm_100, and keep to their registers."""

import pytest
import torch
from compiling import DEVICES, SOLVERS, step_kernels, usage

CASES = [
    (90, 64, 1, 4096, "auto6", torch.float32),  # one launch, the widest tile
    (80, 1000, 1, 16, "anderson", torch.bfloat16),  # one launch, many problems a program
    (100, 2, 1, 1000000, "auto6", torch.float32),  # two, many tiles
    (90, 2, 2048, 1024, "anderson", torch.bfloat16),  # two, many groups
    (90, 2, 1, 100000, "picard", torch.float16),
    (90, 3, 7, 32, "auto6", torch.float32),  # sums over groups of as many as are added at once
]


def check(architecture, problems, groups, entries, solver, dtype):
    for kernel in step_kernels(architecture, problems, groups, entries, SOLVERS[solver], dtype):
        assert usage(kernel).stack == 0, f"{kernel.name}: {usage(kernel)} spills"


@pytest.mark.parametrize(("architecture", "problems", "groups", "entries", "solver", "dtype"), CASES, ids=str)
def test_compiles_without_spills(architecture, problems, groups, entries, solver, dtype):
    check(architecture, problems, groups, entries, solver, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", tuple(DEVICES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", ["picard", "anderson", "auto6"])
@pytest.mark.parametrize(("groups", "entries"), [(1, 16), (1, 512), (1, 4096), (1, 5000), (7, 32), (7, 64), (7, 5000)])
def test_every_plan(architecture, dtype, solver, groups, entries):
    check(architecture, 3, groups, entries, solver, dtype)
