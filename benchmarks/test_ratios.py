"""Fails where this package has become slower relative to naive unrolling than the saved ratios say.

    pytest benchmarks/test_ratios.py

The ratios are saved in ratios.json by `attractor-kernels bench --save-baseline benchmarks/ratios.json`. Times do not
carry over from one machine to another, ratios of times taken side by side roughly do; the tolerance is for the rest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from attractor_kernels.bench.compare import read_baseline, worsened
from attractor_kernels.bench.runs import Plan, run

BASELINE = Path(__file__).parent / "ratios.json"
TOLERANCE = 0.3
SHAPES = ((1, 64), (256, 128), (1024, 256), (64, 1024))


@pytest.mark.skipif(not BASELINE.exists(), reason="no ratios saved: attractor-kernels bench --save-baseline")
def test_no_ratio_is_worse_than_saved():
    saved = read_baseline(BASELINE)
    plan = Plan(shapes=SHAPES, cells=("affine",), dtypes=("float32",), baselines=("naive",), seconds=1.0)
    found, compared = worsened(run(plan), saved, TOLERANCE)
    assert compared > 0, f"{BASELINE} has none of the cases"
    assert not found, "\n".join(map(str, found))
