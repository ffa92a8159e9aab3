"""Contenders meet a case: the gate first, and only then the clock."""

from __future__ import annotations

import time

import pytest

from attractor_kernels.bench import contenders
from attractor_kernels.bench.callables import CallableCase, run_callable
from attractor_kernels.bench.cases import PASSES, Case, Problem
from attractor_kernels.bench.compiled import fastest
from attractor_kernels.bench.contenders import NAIVE, Contender, Runner, Unavailable, ours
from attractor_kernels.bench.peers import ANDERSON, BASELINES, FIXED_POINT_ITER
from attractor_kernels.bench.runs import Plan, Watcher, run, run_case
from attractor_kernels.bench.tables import notes

CASE = Case("affine", "sym", 4, 16)


def wrong(problem: Problem, which: str, steps: int) -> Runner:
    runner = NAIVE.build(problem, which, steps)
    return Runner(runner.call, lambda z: {"z": z * 1.01})


def absent(problem: Problem, which: str, steps: int) -> Runner:
    raise Unavailable("not installed")


def test_a_wrong_result_has_no_speed():
    cheat = Contender("cheat", "off by a percent", ("forward",), wrong)
    row = run_case(Problem(CASE), "forward", [ours("auto", "full"), cheat], budget=0.01, min_repeats=2)
    assert row.entries["cheat"].seconds is None
    assert "wrong: z" in row.entries["cheat"].why
    assert row.entries["cheat"].error == pytest.approx(0.01, rel=0.01)
    assert row.ratio("cheat", "auto full") is None


def test_who_cannot_run_says_why():
    row = run_case(Problem(CASE), "forward", [Contender("absent", "", ("forward",), absent)], 0.01)
    assert row.entries["absent"].why == "not installed"
    assert row.entries["absent"].seconds is None


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("cell", ["affine", "mlp", "gated"])
def test_ours_and_naive_pass_the_gate(cell, which):
    problem = Problem(Case(cell, "orth", 6, 16))
    row = run_case(problem, which, [ours("auto", "full"), ours("auto", "mixed"), NAIVE], 0.01, min_repeats=2)
    for entry in row.entries.values():
        assert entry.why is None
        assert entry.seconds > 0
        assert entry.error < 1e-3
    assert row.entries["auto full"].facts["steps_max"] <= 400
    assert row.ratio("naive", "auto full") > 0


@pytest.mark.parametrize("peer", [FIXED_POINT_ITER, ANDERSON], ids=lambda c: c.name)
def test_torchdeq(peer):
    pytest.importorskip("torchdeq")
    for which in peer.passes:
        row = run_case(Problem(CASE), which, [peer], 0.01, min_repeats=1)
        assert row.entries[peer.name].why is None


def test_a_plan_runs_as_a_whole():
    plan = Plan(shapes=[(2, 8)], families=["orth"], baselines=("naive", "floor"), seconds=0.005, min_repeats=1)
    seen: list[str] = []
    total: list[int] = []
    report = run(plan, Watcher(start=total.append, doing=seen.append))
    assert total == [len(seen)] == [len(report.rows)]
    kinds = {(row.cell, row.dtype, row.which) for row in report.rows}
    assert ("affine", "float32", "backward") in kinds
    assert ("mlp", "float32", "forward+backward") in kinds
    assert ("affine", "float64", "forward") in kinds
    assert ("mlp", "float64", "forward") in kinds
    assert all(row.entries["naive"].seconds for row in report.rows)


def test_an_interrupted_run_keeps_what_it_has():
    plan = Plan(shapes=[(2, 8)], cells=["affine"], dtypes=["float32"], baselines=("naive",), seconds=0.005)
    seen: list[str] = []

    def doing(what: str) -> None:
        seen.append(what)
        if len(seen) == 3:
            raise KeyboardInterrupt

    report = run(plan, Watcher(doing=doing))
    assert len(report.rows) == 2
    assert notes(report)[-1].startswith("interrupted")


def test_a_case_that_does_not_converge_has_no_speeds(monkeypatch):
    monkeypatch.setattr(contenders, "MAX_STEPS", 3)
    row = run_case(Problem(CASE), "forward", [ours("auto", "full"), NAIVE], 0.01)
    assert all(entry.seconds is None and "nobody was timed" in entry.why for entry in row.entries.values())


def test_everything_is_compared_for_the_headline_and_little_elsewhere():
    plan = Plan()
    names = [c.name for c in plan.contenders(Case("affine", "orth", 1, 64), "forward")]
    assert names == ["auto mixed", "auto full", *BASELINES]
    names = [c.name for c in plan.contenders(Case("affine", "orth", 1, 64, "float64"), "forward")]
    assert names == ["auto full", "naive", "floor"]


def test_maps_the_package_does_not_know():
    case = CallableCase("tiny", batch=2, tokens=3, width=8, hidden=16, steps=30)
    row = run_callable(case, 0.01, min_repeats=1)
    assert row.entries["anderson"].why is None
    assert row.entries["anderson"].facts["steps_max"] == 30


def test_the_faster_form_is_taken_and_one_that_fails_is_left_out():
    def broken() -> None:
        raise RuntimeError("no such op")

    assert fastest({"broken": broken, "slow": lambda: time.sleep(0.01), "fast": lambda: None})[0] == "fast"
    with pytest.raises(Unavailable, match="broken: no such op"):
        fastest({"broken": broken})
