"""Against a saved baseline of ratios."""

from __future__ import annotations

import pytest

from attractor_kernels.bench.compare import baseline, read_baseline, worsened, write_baseline


def test_a_run_is_not_worse_than_itself(report, tmp_path):
    path = tmp_path / "baseline.json"
    write_baseline(report, path)
    assert worsened(report, read_baseline(path), 0.0) == ([], 3)


def test_a_ratio_that_fell_is_found(report):
    saved = baseline(report)
    report.rows[1].entries["auto mixed"].seconds *= 1.5
    (found,), _ = worsened(report, saved, 0.3)
    assert found.key == "affine/float32/forward/orth/64x64"
    assert (found.was, found.now) == (pytest.approx(8.0), pytest.approx(8.0 / 1.5))
    assert "was 8.00, is 5.33" in str(found)
    assert worsened(report, saved, 0.4)[0] == []


def test_times_alone_do_not_matter(report):
    saved = baseline(report)
    for row in report.rows:
        for entry in row.entries.values():
            if entry.seconds is not None:
                entry.seconds *= 10.0
    assert worsened(report, saved, 0.01)[0] == []


def test_no_speed_any_more_is_worse_than_any(report):
    saved = baseline(report)
    report.rows[0].entries["auto mixed"].seconds = None
    (found,), _ = worsened(report, saved, 0.9)
    assert found.now == 0.0


def test_cases_of_another_plan_are_left_out(report):
    saved = baseline(report)
    report.rows = report.rows[:1]
    assert worsened(report, saved, 0.0) == ([], 1)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a baseline"):
        read_baseline(path)
