"""The section `plans`: what is tried, what is refused a time, what the table takes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from attractor_kernels.backends import PlanTable, use_plan_table
from attractor_kernels.backends.override import CHANGES_BITS, told
from attractor_kernels.backends.plan import H100
from attractor_kernels.backends.plan_table import PlanEntry
from attractor_kernels.bench.contenders import Contender, Runner, Unavailable
from attractor_kernels.bench.gpu_plan import Call, gpu_plan
from attractor_kernels.bench.machine import facts_module
from attractor_kernels.bench.timing import Timing
from benchmarks.gpu import plans, report
from benchmarks.gpu.context import Context
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.sizes import DRY, FULL, Planned
from benchmarks.gpu.state import State
from benchmarks.gpu.supervisor import run_here

needs_facts = pytest.mark.skipif(facts_module() is None, reason="the compiled part of the package is missing")

AFFINE = Planned("solve_affine", 4096, 64)


@needs_facts
@pytest.mark.parametrize(
    ("planned", "wanted"),
    [
        (AFFINE, [{"rows": 8, "crew": 0}, {"crew": 1}]),
        (Planned("solve_affine", 1, 1024), [{"rows": 8, "crew": 0}, {"rows": 32, "crew": 0}]),
        (Planned("solve_affine", 256, 256, dtype="float64"), [{"rows": 16, "crew": 0}]),
        (Planned("solve_affine", 4096, 256, precision="mixed"), [{"rows": 8}, {"mixed": 0}, {"wgmma": 0}]),
        (Planned("solve_affine", 4096, 32, precision="mixed"), [{"rows": 8}, {"mixed": 1}]),
        (Planned("solve_gated_adjoint", 4096, 128), [{"rows": 8}]),
        (Planned("solve_mlp", 16, 128), [{"rows": 32}]),
    ],
    ids=str,
)
def test_what_is_tried_beside_the_models_cuda_plan(planned, wanted):
    assert plans.alternatives(plans.call_of(planned), H100, "cuda") == wanted


def test_what_is_tried_beside_the_models_triton_plan():
    found = plans.alternatives(plans.call_of(AFFINE), H100, "triton")
    stages = [{"rows": 16, "stages": 2}, {"rows": 16, "stages": 4}]
    assert found == [{"rows": 32}, {"rows": 64}, {"rows": 16, "warps": 8}, *stages]
    small = plans.alternatives(plans.call_of(replace(AFFINE, dim=16, precision="mixed")), H100, "triton")
    assert {"rows": 16} not in small and {"rows": 64} not in small  # either has other bits
    assert all("stages" in choices or "mixed" in choices for choices in small)


@needs_facts
@pytest.mark.parametrize("backend", plans.BACKENDS)
@pytest.mark.parametrize("planned", [one for one in FULL.plans if one.dtype == "float32" and one.dim <= 128], ids=str)
def test_a_table_takes_what_is_tried(planned, backend):
    call = plans.call_of(planned)
    found = plans.alternatives(call, H100, backend)
    assert found
    for choices in found:
        if any(name in choices for name in CHANGES_BITS):
            continue
        with use_plan_table(PlanTable(H100, (PlanEntry(call.kind(backend), choices),))):
            plan = gpu_plan(call, H100, backend)
        assert {name for name, who in plan["chosen_by"].items() if who == "table"} == set(choices)


def test_no_two_calls_share_an_entry():
    for sizes in (FULL, DRY):
        kinds = [plans.call_of(one).kind(backend).largest for one in sizes.plans for backend in plans.BACKENDS]
        assert len(set(kinds)) == len(kinds)


class Faked:
    """A device on which the solve, and how long it takes, depend on what is told of solve_affine."""

    facts = H100
    where = torch.device("cpu")
    shortest, overhead = 1e-9, 0.0

    def __init__(self, seconds=None, values=None):
        self.seconds, self.values = seconds or {}, values or {}
        self.stopwatch = self
        self.backend = "cuda"

    def chosen(self):
        return " ".join(f"{name}{value}" for name, value in told("solve_affine", self.backend).items())

    def runs(self, backend):
        self.backend = backend
        return "reference"

    def synchronize(self):
        pass

    def solve(self):
        found = self.values.get(self.chosen(), 0.0)
        if isinstance(found, Exception):
            raise found
        return torch.ones(3, 4) + found

    def sample(self, call, repeats):
        call()
        return self.seconds.get(self.chosen(), 1e-3)


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """compare() on a faked device, with a problem whose solution is 1."""

    def run(device: Faked, planned: Planned = AFFINE, backend: str = "cuda", build=None, **sizes):
        def ready(problem, which, steps):
            return Runner(device.solve, lambda z: {"z": z})

        problem = SimpleNamespace(expected=lambda which: {"z": torch.ones(3, 4, dtype=torch.float64)})
        monkeypatch.setattr(plans, "Problem", lambda case, device: problem)
        monkeypatch.setattr(plans, "ours", lambda *how: Contender("ours", "", ("forward",), build or ready, ours=True))
        context = SimpleNamespace(device=device, sizes=replace(DRY, **sizes), out=tmp_path)
        return plans.compare(context, planned, backend)

    return run


def others(result):
    return {str(one["choices"]): one for one in result["entry"]["measured"]["others"]}


@needs_facts
def test_the_fastest_choice_is_taken(compare):
    result = compare(Faked({"": 1e-3, "rows8 crew0": 0.8e-3, "crew1": 0.9e-3}))
    assert result["problems"] == []
    entry = result["entry"]
    assert entry["choices"] == {"rows": 8, "crew": 0}
    assert entry["measured"]["model"]["median"] == 1e-3 and entry["measured"]["model"]["plan"]["tile_rows"] == 32
    assert others(result)["{'crew': 1}"]["median"] == 0.9e-3
    assert (entry["backend"], entry["batch"], entry["solver"]) == ("cuda", 4096, "auto")


@needs_facts
@pytest.mark.parametrize("gained", [0.96, 1.0, 1.2])
def test_a_small_gain_leaves_the_model(compare, gained):
    assert compare(Faked({"": 1e-3, "rows8 crew0": gained * 1e-3}))["entry"]["choices"] == {}


def test_a_gain_must_be_beyond_the_noise():
    def tried(low, median, high, choices):
        return plans.Tried(lambda: None, lambda: None, choices, True, Timing(median, low, high, 5, 1))

    model = tried(0.98, 1.0, 1.1, {})
    assert plans.best(model, [tried(0.7, 0.8, 0.93, {"rows": 8})]) == {"rows": 8}
    assert plans.best(model, [tried(0.7, 0.8, 0.94, {"rows": 8})]) == {}
    changed = tried(0.1, 0.1, 0.1, {"rows": 8})
    changed.same_bits = False
    assert plans.best(model, [changed, tried(0.1, 0.1, 0.1, {"mixed": 0})]) == {}


@needs_facts
def test_other_bits_are_wrong_and_have_no_time(compare):
    result = compare(Faked({"rows8 crew0": 1e-4}, {"rows8 crew0": 1e-7}))
    assert result["problems"] == ["{'rows': 8, 'crew': 0}: wrong: other bits than under the model's plan"]
    assert "median" not in others(result)["{'rows': 8, 'crew': 0}"]
    assert result["entry"]["choices"] == {}


@needs_facts
def test_mixed_is_timed_but_never_taken(compare):
    planned = replace(AFFINE, dim=256, precision="mixed")
    result = compare(Faked({"mixed0": 1e-4}, {"mixed0": 1e-6}), planned)
    assert result["problems"] == [] and result["entry"]["choices"] == {}
    assert others(result)["{'mixed': 0}"]["median"] == 1e-4
    assert others(result)["{'mixed': 0}"]["same_bits"] is False
    wrong = compare(Faked({}, {"mixed0": 0.1}), planned)
    assert wrong["problems"] == ["{'mixed': 0}: wrong: another result than under the model's plan"]
    assert "median" not in others(wrong)["{'mixed': 0}"]


@needs_facts
def test_a_wrong_model_has_no_entry(compare):
    result = compare(Faked({}, {"": 0.1}))
    assert "entry" not in result and "z is 1.0e-01 off" in result["problems"][0]


@needs_facts
def test_who_is_far_behind_is_dropped(compare):
    result = compare(Faked({"rows8 crew0": 3.1e-3, "crew1": 2.9e-3}))
    assert others(result)["{'rows': 8, 'crew': 0}"]["why"].startswith("slow: 0.0031 s at first, more than 0.003 s")
    assert others(result)["{'crew': 1}"]["median"] == 2.9e-3
    assert "median" not in others(result)["{'rows': 8, 'crew': 0}"] and result["problems"] == []


@needs_facts
def test_what_cannot_be_launched_is_no_fault(compare):
    result = compare(Faked({}, {"crew1": RuntimeError("out of resources")}))
    assert others(result)["{'crew': 1}"]["why"] == "RuntimeError: out of resources"
    assert others(result)["{'rows': 8, 'crew': 0}"]["median"] and result["problems"] == []


@needs_facts
def test_when_the_time_is_up_no_more_is_tried(compare):
    result = compare(Faked(), plan_seconds=0.0)
    assert {one["why"] for one in others(result).values()} == {"not tried: the time was up"}
    assert result["entry"]["measured"]["model"]["median"] == 1e-3


def test_triton_is_told_too(compare):
    result = compare(Faked({"rows16 stages2": 0.5e-3}), backend="triton")
    assert result["entry"]["choices"] == {"rows": 16, "stages": 2}


def test_where_there_is_no_kernel(compare):
    assert "1 to 256" in compare(Faked(), replace(AFFINE, dim=512), "triton")["cannot"]

    def fail(problem, which, steps):
        raise Unavailable("it did not converge")

    found = compare(Faked(), backend="triton", build=fail)
    assert found == {"cannot": "it did not converge", "problems": ["it did not converge"]}


@needs_facts
def test_the_table_of_a_dry_run(tmp_path):
    context = Context(tmp_path, dry=True)
    state = run_here(SECTIONS["plans"], context)
    assert state.good, (state.reason, state.failed, state.problems)
    table = PlanTable.read(tmp_path / plans.TABLE)
    assert len(table.entries) == sum("entry" in case for case in state.cases.values()) == 2 * len(DRY.plans) - 1
    assert "CPU" in table.device.name and table.about["versions"]["torch"] == torch.__version__
    found = json.loads((tmp_path / plans.TABLE).read_text())["entries"]
    for entry in found:
        assert entry["measured"]["model"]["median"] > 0 and entry["measured"]["others"]
        assert all(one["same_bits"] for one in entry["measured"]["others"])
    text = report.plans_table(state.cases)
    assert text.row_count == len(state.cases)


def test_a_table_has_what_was_found_before_an_interruption(tmp_path):
    kind = Call("solve_affine", 4096, 64).kind("cuda")
    cases = {"first": {"entry": {**kind._asdict(), "choices": {"rows": 8}}}, "second": {"cannot": "no kernel"}}
    State("plans", cases=cases).write(tmp_path)
    plans.write_table(Context(tmp_path, dry=True))
    assert PlanTable.read(tmp_path / plans.TABLE).entries == (PlanEntry(kind, {"rows": 8}),)
