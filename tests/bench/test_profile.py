"""One solve taken apart."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from attractor_kernels.bench.cases import Case
from attractor_kernels.bench.counts import count
from attractor_kernels.bench.profile import split, take_apart
from attractor_kernels.bench.profile_view import bins, plot, renderables, to_json


def test_parts_are_differences_and_sum_to_the_whole():
    # call 1, products 2 and activation 0.5 per step, mixing 0.3 per step, waiting 4, 10 steps of each row
    timings = {"one": 3.5, "identity": 21.0, "picard": 26.0, "even": 29.0, "solve": 33.0}
    parts = split(timings, even=10, mean=10.0)
    assert parts == pytest.approx({"call": 1.0, "products": 20.0, "activation": 5.0, "mixing": 3.0, "waiting": 4.0})


def test_parts_scale_with_the_row_steps_actually_taken():
    timings = {"one": 3.5, "identity": 21.0, "picard": 26.0, "even": 29.0, "solve": 24.0}
    parts = split(timings, even=10, mean=8.0)
    assert parts["products"] == pytest.approx(16.0)
    assert sum(parts.values()) == pytest.approx(24.0)


def test_without_a_linear_form_products_and_activation_stay_together():
    parts = split({"one": 3.5, "picard": 26.0, "even": 29.0, "solve": 33.0}, even=10, mean=10.0)
    assert parts["products and activation"] == pytest.approx(25.0)


@pytest.mark.parametrize("cell", ["affine", "gated"])
def test_a_profile(cell, tmp_path):
    found = take_apart(Case(cell, "orth", 16, 16), budget=0.02)
    assert sum(found.steps.values()) == 16
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert found.mean_steps <= found.slowest
    assert found.calls["naive"].operations >= found.slowest
    out = Console(file=io.StringIO(), width=120)
    for part in renderables(found):
        out.print(part)
    assert "steps per problem" in out.file.getvalue()
    assert to_json(found)["row_steps"] == found.row_steps
    assert plot(found, tmp_path / "profile.png").stat().st_size > 5000


def test_operations_and_synchronisations_are_counted():
    x = torch.ones(3)
    calls = count(lambda: [bool((x + i).sum() > 0) for i in range(4)])
    assert calls.synchronisations == 4
    assert calls.operations == 12  # add, sum, gt
    assert count(lambda: x.view(3, 1).expand(3, 2)).operations == 0


def test_histogram_ranges_hold_every_problem():
    steps = {k: k for k in range(3, 90)}
    counts = bins(steps, most=10)
    assert len(counts) <= 10
    assert sum(counts.values()) == sum(steps.values())
