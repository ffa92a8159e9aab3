"""The demonstration: the same training twice."""

from __future__ import annotations

import pytest
import torch

from attractor_kernels.bench.demo.memory import measure_in_child
from attractor_kernels.bench.demo.model import VARIANTS, Classifier, Digits, Settings
from attractor_kernels.bench.demo.train import compare
from attractor_kernels.bench.demo.view import plot, table, to_json

SMALL = Settings(state_dim=32, batch=128, epochs=2)


@pytest.fixture(scope="module")
def outcomes():
    return compare(SMALL, memory=False)


def test_both_variants_learn_the_same(outcomes):
    naive, mine = (outcomes[variant] for variant in VARIANTS)
    assert mine.losses == pytest.approx(naive.losses, rel=1e-3)
    assert mine.losses[-1] < 0.9 * mine.losses[0]
    assert abs(mine.accuracy - naive.accuracy) < 0.02


def test_every_problem_stops_by_itself(outcomes):
    naive, mine = (outcomes[variant] for variant in VARIANTS)
    assert len(naive.steps) == 1
    assert len(mine.steps) > 1
    assert sum(mine.steps.values()) == 360


def test_views(outcomes, tmp_path):
    assert table(outcomes).row_count == 5
    assert plot(outcomes, tmp_path / "demo.png").stat().st_size > 10_000
    assert to_json(outcomes)["unrolled"]["accuracy"] == outcomes["unrolled"].accuracy


def test_two_runs_are_the_same_run():
    again = [Classifier(variant, SMALL).cell.weight for variant in VARIANTS for _ in range(2)]
    assert all(torch.equal(weight, again[0]) for weight in again)
    digits = Digits.load()
    batches = [next(iter(digits.batches(SMALL)))[1] for _ in range(2)]
    assert torch.equal(*batches)


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    model = Classifier("unrolled", SMALL)
    weights = tmp_path / "weights.pt"
    torch.save({"cell": model.cell.state_dict(), "readout": model.readout.state_dict()}, weights)
    memory = measure_in_child("unrolled", SMALL, weights)
    assert memory.before > 50e6  # torch itself
    assert memory.rise >= 0
