"""Synthetic results, whose ratios are known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from attractor_kernels.bench.results import Entry, Report, Row

# benchmarks.gpu lies beside tests; last, so that it brings no other attractor_kernels.
sys.path.append(str(Path(__file__).resolve().parents[2]))


def make_row(family: str, batch: int, dim: int, ours: float | None, naive: float, cell: str = "affine") -> Row:
    facts = {"steps_mean": 20.0, "steps_max": 25}
    entries = [
        Entry("auto mixed", True, ours, ours, ours, 7, 1, 1e-5, 2e-5, None if ours else "did not converge", facts),
        Entry("naive", False, naive, naive, naive, 7, 1, 2e-5, 3e-5),
        Entry("jax", why="JAX is not installed"),
        Entry("floor", False, naive / 2, naive / 2, naive / 2, 7, 1),
    ]
    return Row(cell, family, batch, dim, "float32", "forward", 30, {entry.name: entry for entry in entries})


@pytest.fixture
def report() -> Report:
    rows = [
        make_row("orth", 1, 64, ours=1e-3, naive=2e-3),
        make_row("orth", 64, 64, ours=1e-3, naive=8e-3),
        make_row("sym", 1, 64, ours=2e-3, naive=1e-3),
        make_row("sym", 64, 64, ours=None, naive=1e-3),
    ]
    machine = {"cpu": "a processor", "flags": [], "threads": 2, "instruction_set": "avx2"}
    return Report("2026-01-01 00:00 UTC", "abc", machine, {"torch": "2.13.0"}, {"rtol": 1e-5}, rows)
