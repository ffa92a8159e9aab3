"""What is wrong gets no speed."""

from __future__ import annotations

import pytest
import torch

from attractor_kernels.bench.gate import check

REFERENCE = torch.randn(1024, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_right_results_pass():
    verdict = check({"z": (REFERENCE * (1 + 5e-5)).float()}, {"z": REFERENCE})
    assert verdict.passed
    assert verdict.error == pytest.approx(5e-5, rel=0.01)
    assert verdict.worst_row == pytest.approx(5e-5, rel=0.02)


@pytest.mark.parametrize("scale", [1 + 2e-4, 0.0, float("nan"), float("inf")])
def test_wrong_results_do_not(scale):
    assert not check({"z": REFERENCE * scale}, {"z": REFERENCE}).passed


def test_one_wrong_row_in_a_large_batch_is_enough():
    z = REFERENCE.clone()
    z[17] *= 1.05
    verdict = check({"z": z}, {"z": REFERENCE})
    assert not verdict.passed
    assert verdict.worst_row == pytest.approx(0.05)


def test_the_worst_of_several_results_is_named():
    expected = {"z": REFERENCE, "weight": REFERENCE[:16]}
    verdict = check({"z": REFERENCE, "weight": REFERENCE[:16] * 1.1}, expected)
    assert verdict.worst == "weight" and not verdict.passed


def test_another_shape_is_wrong():
    assert not check({"w": REFERENCE[:1]}, {"w": REFERENCE}).passed


def test_a_missing_result_is_an_error():
    with pytest.raises(ValueError, match="weight"):
        check({"z": REFERENCE}, {"z": REFERENCE, "weight": REFERENCE})
