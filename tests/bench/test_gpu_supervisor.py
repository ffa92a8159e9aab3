"""Sections that crash, hang or break the device: what is kept, and that the next case is tried."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.sections import SECTIONS, Section
from benchmarks.gpu.state import DONE, FAILED, SKIPPED, State
from benchmarks.gpu.supervisor import Deadline, run_here, run_watched
from benchmarks.gpu.worker import BROKEN, run_section

# A worker of six cases, each of which behaves as its name says; the real one's file, in the real one's order.
WORKER = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu.state import State
folder = Path(sys.argv[1])
state = State.read(folder, "fake")
for name in sys.argv[2:]:
    if state.tried(name):
        continue
    state.current = name
    state.write(folder)
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        os.abort()
    if name == "leaves":
        sys.exit("no more memory")
    if name == "breaks":
        state.failed[name], state.current = "an illegal address", None
        state.write(folder)
        sys.exit(3)
    state.cases[name], state.current = {"value": os.getpid()}, None
    state.write(folder)
state.status = "done"
state.write(folder)
"""


def section(case_limit: float = 30, limit: float = 100) -> Section:
    return Section("fake", "nothing", limit, case_limit)


@pytest.fixture
def watched(tmp_path):
    def run(*names: str, case_limit: float = 30, limit: float = 100) -> State:
        command = [sys.executable, "-c", WORKER, str(tmp_path), *names]
        return run_watched(section(case_limit, limit), Context(tmp_path), Deadline(100), command=command)

    return run


def test_all_cases_of_a_section(watched):
    state = watched("a", "b")
    assert state.good and list(state.cases) == ["a", "b"]


@pytest.mark.parametrize(("name", "why"), [("dies", "died with signal 6"), ("leaves", "no more memory")])
def test_the_case_that_kills_its_process_is_named_and_left_behind(watched, name, why):
    state = watched("a", name, "b")
    assert state.status == DONE and not state.good
    assert list(state.cases) == ["a", "b"]
    assert why in state.failed[name]


def test_a_case_that_never_ends_is_ended(watched):
    begun = time.monotonic()
    state = watched("a", "hangs", "b", case_limit=8)
    assert time.monotonic() - begun < 50
    assert list(state.cases) == ["a", "b"]
    assert "without an end" in state.failed["hangs"]


def test_a_broken_device_gets_a_new_process(watched):
    state = watched("a", "breaks", "b")
    assert state.failed == {"breaks": "an illegal address"}
    assert state.cases["a"]["value"] != state.cases["b"]["value"]


def test_too_many_deaths_end_a_section(watched, tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('cannot import it')"]
    state = run_watched(section(), Context(tmp_path), Deadline(100), command=command)
    assert state.status == FAILED and "cannot import it" in (state.reason or "")


def test_when_the_time_is_up_nothing_is_begun(tmp_path):
    state = run_watched(section(), Context(tmp_path), Deadline(0))
    assert (state.status, state.reason) == (SKIPPED, "the time was up")


class Faulty:
    """A module whose cases are given."""

    def __init__(self, *cases):
        self.given = cases

    def cases(self, context):
        yield from self.given


def fail():
    raise ValueError("it is wrong")


def faulty(monkeypatch, *cases) -> Section:
    monkeypatch.setattr(Section, "module", lambda self: Faulty(*cases))
    return section()


def test_a_failing_case_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch):
    one = faulty(monkeypatch, ("a", fail), ("b", lambda: {"problems": ["off by one"]}), ("c", dict))
    state = run_here(one, Context(tmp_path, dry=True))
    assert state.failed == {"a": "ValueError: it is wrong"}
    assert state.problems == ["b: off by one"]
    assert list(state.cases) == ["b", "c"] and state.status == DONE and not state.good


def test_cases_that_were_tried_are_not_run_again(tmp_path, monkeypatch):
    State("fake", cases={"a": {"value": 1}}, failed={"b": "it hung"}).write(tmp_path)
    run_section(faulty(monkeypatch, ("a", fail), ("b", fail), ("c", lambda: {"value": 3})), Context(tmp_path))
    state = State.read(tmp_path, "fake")
    assert state.cases["a"] == {"value": 1} and state.cases["c"]["value"] == 3
    assert state.failed == {"b": "it hung"}


def test_a_section_that_cannot_begin_says_why(tmp_path, monkeypatch):
    class Absent:
        def cases(self, context):
            raise RuntimeError("no CUDA device")

    monkeypatch.setattr(Section, "module", lambda self: Absent())
    state = run_here(section(), Context(tmp_path, dry=True))
    assert (state.status, state.reason) == (FAILED, "RuntimeError: no CUDA device")


def test_a_device_that_answers_no_more_ends_the_process(tmp_path, monkeypatch):
    def lost():
        raise RuntimeError("an illegal memory access was encountered")

    context = Context(tmp_path)
    vars(context)["device"] = SimpleNamespace(release=lost)
    assert run_section(faulty(monkeypatch, ("a", dict), ("b", dict)), context) == BROKEN
    assert list(State.read(tmp_path, "fake").cases) == ["a"]


def test_a_result_without_a_number_is_not_written(tmp_path):
    """JSON has no NaN; whoever reads the file would stumble."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        State("fake", cases={"a": {"seconds": float("nan")}}).write(tmp_path)
    assert State.read(tmp_path, "fake") is None


# With the time that a busy machine needs to start Python.
CEILINGS = replace(SECTIONS["ceilings"], limit=300, case_limit=300)


def test_the_worker_itself(tmp_path):
    seen: list[str] = []
    state = run_watched(CEILINGS, Context(tmp_path, dry=True), Deadline(400), doing=seen.append)
    log = (tmp_path / "logs" / "ceilings.log").read_text()
    assert state.good, log
    assert next(iter(state.cases)) == "copy" and set(seen) <= set(state.cases)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_device(tmp_path):
    state = run_watched(CEILINGS, Context(tmp_path), Deadline(400))
    assert not state.good and not state.cases
    assert "copy" in state.failed
