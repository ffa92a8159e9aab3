"""Ratios, geometric means, and the file they are kept in."""

from __future__ import annotations

import json

import pytest

from attractor_kernels.bench.results import Entry, Report, Row, geometric_mean


def test_ratios_are_theirs_over_ours(report):
    assert report.rows[0].ratio("naive", "auto mixed") == pytest.approx(2.0)
    assert report.rows[1].ratio("naive", "auto mixed") == pytest.approx(8.0)
    assert report.rows[1].ratio("floor", "auto mixed") == pytest.approx(4.0)


def test_no_ratio_without_two_speeds(report):
    assert report.rows[0].ratio("jax", "auto mixed") is None
    assert report.rows[3].ratio("naive", "auto mixed") is None
    assert report.rows[0].ratio("nobody", "auto mixed") is None


def test_geometric_mean():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([1e-200, 1e200]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="empty"):
        geometric_mean([])


def test_summaries(report):
    orth, sym = report.summaries()
    assert (orth["family"], sym["family"]) == ("orth", "sym")
    naive = orth["ratios"]["naive"]
    assert naive["geometric_mean"] == pytest.approx(4.0)
    assert naive["smallest"] == pytest.approx(2.0)
    assert naive["shapes"] == 2
    # The shape without a speed of ours does not count, and is seen not to.
    assert sym["ratios"]["naive"]["shapes"] == 1
    assert "jax" not in orth["ratios"]


def test_json_round_trip(report, tmp_path):
    path = tmp_path / "new" / "run.json"
    report.write(path)
    assert Report.read(path) == report
    raw = json.loads(path.read_text())
    assert raw["rows"][0]["pass"] == "forward"
    assert raw["rows"][0]["ratios"]["auto mixed"]["naive"] == pytest.approx(2.0)
    assert {"schema", "date", "commit", "machine", "versions", "settings", "summaries", "rows"} == set(raw)


def test_another_schema_is_refused(report):
    with pytest.raises(ValueError, match="schema"):
        Report.from_json({**report.to_json(), "schema": 0})


def test_cost_of_a_step_beside_the_map():
    seconds = {"anderson": 1.1, "torchdeq anderson": 1.5, "floor": 1.0}
    entries = {name: Entry(name, seconds=value) for name, value in seconds.items()}
    row = Row("callable", "large", 1, 1, "float32", "forward", 10, entries)
    costs = row.step_costs()
    assert costs is not None
    assert costs["ours"] == pytest.approx(0.01)
    assert costs["torchdeq"] == pytest.approx(0.05)
    assert costs["ratio"] == pytest.approx(5.0)
    entries["floor"].seconds = None
    assert row.step_costs() is None
