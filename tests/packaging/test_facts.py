"""What the compiled library tells of itself."""

from __future__ import annotations

import pytest
import torch

import attractor_kernels as ak
from attractor_kernels import _facts


@pytest.fixture
def keep_instruction_set():
    before = _facts.instruction_set()
    yield
    _facts.set_instruction_set(before)


def test_build():
    facts = _facts.build()
    assert facts["target_torch"] == "2.11"
    assert facts["torch"]
    assert facts["compiler"].split()[0] in ("gcc", "clang")
    assert set(facts["kernel_flags"]) == set(_facts.instruction_sets())
    assert all("-ffp-contract=off" in flags for flags in facts["kernel_flags"].values())


def test_cuda_kernels_are_told_of(package):
    cuda = _facts.build()["cuda"]
    built = (package / "_cuda.so").exists()
    assert built == (cuda["absent"] == "")
    assert bool(cuda["nvcc"]) == bool(cuda["architectures"]) == built


def test_the_best_supported_set_is_in_use():
    assert _facts.instruction_set() == next(name for name, has in _facts.instruction_sets().items() if has)


@pytest.mark.usefixtures("keep_instruction_set")
def test_every_supported_set_solves_alike():
    torch.manual_seed(0)
    cell, x, z0 = ak.nn.AffineCell(19, 5), torch.randn(7, 5), torch.zeros(7, 19)
    values = []
    for name, supported in _facts.instruction_sets().items():
        if supported:
            _facts.set_instruction_set(name)
            assert _facts.instruction_set() == name
            z, info = ak.fixed_point(cell.bind(x), z0, rtol=1e-6, backend="cpu")
            assert info.converged.all()
            values.append(z)
    for z in values:
        torch.testing.assert_close(z, values[0], rtol=1e-4, atol=1e-5)


def test_unknown_set_is_refused():
    with pytest.raises(ValueError, match="name is 'abacus'"):
        _facts.set_instruction_set("abacus")


def test_cache_sizes_grow_with_the_level():
    sizes = list(_facts.cache_bytes().values())
    assert sizes == sorted(sizes)
    assert all(size > 0 for size in sizes)


@pytest.mark.parametrize("rows", [1, 64, 16384])
def test_plan(rows):
    plan = _facts.plan_affine(rows=rows, dim=256, solver=1, history=5, element_size=4, threads=2)
    assert plan["tile_rows"] >= 1
    assert 1 <= plan["threads"] <= 2
    assert plan["packed_bytes"] >= 256 * 256 * 4
    assert plan["scratch_bytes"] > 0
