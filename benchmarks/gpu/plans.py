"""Section `plans`: the model's plan of a call beside others that `use_plan` can choose, and the table that this makes.

The table, plan_table.json, is for `backends.use_plan_table` and `attractor-kernels info --table`. Whatever is timed has
been checked first: the model's plan against float64, the others bit by bit against the model's, since which entry of a
table serves a call depends on the batch and a row's bits may not. `mixed` and `wgmma` change them, and are timed for
information.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attractor_kernels.backends import PlanTable, triton, use_plan
from attractor_kernels.backends.override import CHANGES_BITS
from attractor_kernels.backends.plan import CHANGES, tile_rows
from attractor_kernels.backends.plan_table import SCHEMA, PlanEntry
from attractor_kernels.bench import machine
from attractor_kernels.bench.cases import Case, Problem
from attractor_kernels.bench.contenders import Runner, Unavailable, ours
from attractor_kernels.bench.gate import check
from attractor_kernels.bench.gpu_plan import Call, gpu_plan
from attractor_kernels.bench.timing import Stopwatch, Timing, measure

from .context import Cases, Context, Result
from .sizes import Planned

BACKENDS = ("cuda", "triton")
TABLE = "plan_table.json"
GAIN = 1.05  # of a choice over the model, between the nearer quartiles of both
SLOW = 3.0  # times the model's: who takes that at first is not timed further

Choices = dict[str, int]


def cases(context: Context) -> Cases:
    """One a call and backend; the table has what there is after each."""
    for backend in BACKENDS:
        for planned in context.sizes.plans:
            yield f"{planned} {backend}", partial(compare, context, planned, backend)
            write_table(context)


def write_table(context: Context) -> Path:
    """What the section has found so far, as a table, which is read again."""
    found = {
        "schema": SCHEMA,
        "device": asdict(context.device.facts),
        "date": machine.today(),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "entries": [case["entry"] for case in context.earlier("plans").values() if "entry" in case],
    }
    path = context.out / TABLE
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    PlanTable.read(path)
    return path


@dataclass
class Tried:
    """Choices for a call, and how they did; no choices: the model's plan.

    Attributes:
        same_bits: as the model's result; None: there is no result.
        why: what they are not timed for.
    """

    solve: Callable[[], Any]
    told: Callable[[], AbstractContextManager[Any]]
    choices: Choices = field(default_factory=dict)
    same_bits: bool | None = None
    timing: Timing | None = None
    why: str | None = None

    def __call__(self) -> Any:
        with self.told():
            return self.solve()

    def to_json(self) -> dict[str, Any]:
        times = {} if self.timing is None else asdict(self.timing)
        return {"choices": self.choices, "same_bits": self.same_bits, "why": self.why, **times}


@dataclass
class TellingStopwatch:
    """Times solves as they are told to run, but not the telling."""

    watch: Stopwatch

    def __post_init__(self) -> None:
        self.shortest, self.overhead = self.watch.shortest, self.watch.overhead

    def sample(self, call: Any, repeats: int) -> float:
        with call.told():
            return self.watch.sample(call.solve, repeats)


def compare(context: Context, planned: Planned, backend: str) -> Result:
    """One call on one backend: an entry of the table, and what is wrong."""
    device, call = context.device, call_of(planned)
    sizes = triton.Sizes(call.dim, call.units, call.history if call.code else 0)
    if backend == "triton" and (reason := triton.uncovered(call.operator, getattr(torch, call.dtype), sizes)):
        return {"cannot": reason}
    problem = Problem(Case(planned.cell, "orth", planned.batch, planned.dim, planned.dtype), device=device.where)
    contender = ours(planned.solver, planned.precision, device.runs(backend))
    try:
        runner = contender.build(problem, planned.which, 0)
    except Unavailable as reason:
        return {"cannot": str(reason), "problems": [str(reason)]}
    tell = partial(use_plan, call.operator, backend=backend)
    model = Tried(runner.call, tell, same_bits=True)
    results = results_of(runner, model)
    verdict = check(results, problem.expected(planned.which))
    if not verdict.passed:
        return {"problems": [f"wrong: {verdict.worst} is {verdict.error:.1e} off, more than {verdict.limit:.0e}"]}
    others = [
        Tried(runner.call, partial(tell, **choices), choices) for choices in alternatives(call, device.facts, backend)
    ]
    problems = admit(others, runner, results, time.monotonic() + context.sizes.plan_seconds)
    device.synchronize()  # an error of the device is none of the next case's
    time_all(model, others, context)
    return {"entry": entry_of(call, device.facts, backend, model, others), "problems": problems}


def call_of(planned: Planned) -> Call:
    return Call(
        planned.operator,
        planned.batch,
        planned.dim,
        solver=planned.solver,
        dtype=planned.dtype,
        precision=planned.precision,
    )


def results_of(runner: Runner, tried: Tried) -> Mapping[str, Tensor]:
    assert runner.results is not None
    return runner.results(tried())


def alternatives(call: Call, device: Any, backend: str) -> list[Choices]:
    """Choices of other plans than the model's, each of another; without those that a table is refused for."""

    def plan_of(choices: Choices) -> dict[str, Any]:
        with use_plan(call.operator, backend=backend, **choices):
            return {name: fact for name, fact in gpu_plan(call, device, backend).items() if name != "chosen_by"}

    plans = [plan_of({})]
    found = []
    for choices in (_of_cuda if backend == "cuda" else _of_triton)(call, plans[0]):
        try:
            if not _changes_bits(choices):
                PlanEntry(call.kind(backend), choices)
            plan = plan_of(choices)
        except ValueError:  # not to be had, or not in a table
            continue
        if plan not in plans:
            plans.append(plan)
            found.append(choices)
    return found


def _of_cuda(call: Call, model: Mapping[str, Any]) -> Iterator[Choices]:
    splits = call.operator == "solve_affine" and call.precision == "full"
    for rows in (16,) if call.dtype == "float64" else (8, 32):
        yield {"rows": rows, "crew": 0} if splits else {"rows": rows}
    if splits:
        yield {"crew": 1}
    if call.precision == "mixed":
        yield {"mixed": 1 - int(model["mixed"])}
        yield {"wgmma": 0}


def _changes_bits(choices: Choices) -> bool:
    return any(name in choices for name in CHANGES_BITS)


def _of_triton(call: Call, model: Mapping[str, Any]) -> Iterator[Choices]:
    """One thing at a time: each is a compilation."""
    for rows in tile_rows(model["precision"]):
        yield {"rows": rows}
    for warps in (4, 8):
        yield {"rows": model["rows"], "warps": warps}
    for stages in (2, 4):
        yield {"rows": model["rows"], "stages": stages}
    if call.precision == "mixed":
        yield {"mixed": int(model["precision"] != CHANGES)}


def admit(others: Sequence[Tried], runner: Runner, expected: Mapping[str, Tensor], until: float) -> list[str]:
    """Runs everybody once. Who has other bits than expected is wrong, unless the choice changes them."""
    problems = []
    for tried in others:
        if time.monotonic() > until:
            tried.why = "not tried: the time was up"
            continue
        try:
            results = results_of(runner, tried)
        except Exception as error:  # a kernel that does not compile, or finds no room on the device
            tried.why = f"{type(error).__name__}: {error}"[:300]
            continue
        tried.same_bits = all(torch.equal(results[name], expected[name]) for name in expected)
        if tried.same_bits:
            continue
        if not _changes_bits(tried.choices):
            tried.why = "wrong: other bits than under the model's plan"
        elif not check(results, {name: tensor.double() for name, tensor in expected.items()}).passed:
            tried.why = "wrong: another result than under the model's plan"
        if tried.why:
            problems.append(f"{tried.choices}: {tried.why}")
    return problems


def time_all(model: Tried, others: Sequence[Tried], context: Context) -> None:
    """Everybody in turn, but those that are far behind the model at first."""
    watch, sizes = TellingStopwatch(context.device.stopwatch), context.sizes
    limit = SLOW * watch.sample(model, 1)
    kept = [model]
    for tried in others:
        if tried.why is not None:
            continue
        first = min(watch.sample(tried, 1) for _ in range(2))  # an interruption only ever lengthens one
        if first > limit:
            tried.why = f"slow: {first:.3g} s at first, more than {limit:.3g} s"
        else:
            kept.append(tried)
    calls = {str(i): tried for i, tried in enumerate(kept)}
    found = measure(calls, sizes.seconds, min_repeats=sizes.repeats, stopwatch=watch)
    for name, timing in found.items():
        calls[name].timing = timing


def best(model: Tried, others: Sequence[Tried]) -> Choices:
    """The fastest choices, where they gain beyond the noise; else none. Never such that change a bit."""
    timed = [one for one in others if one.timing is not None and one.same_bits and not _changes_bits(one.choices)]
    first = min(timed, key=lambda one: one.timing.median, default=None)  # type: ignore[union-attr]
    if first is None or first.timing is None or model.timing is None:
        return {}
    return first.choices if first.timing.high * GAIN <= model.timing.low else {}


def entry_of(call: Call, device: Any, backend: str, model: Tried, others: Sequence[Tried]) -> dict[str, Any]:
    """As the table has it; "measured" is for people and the cost model."""
    plan = {name: fact for name, fact in gpu_plan(call, device, backend).items() if name != "chosen_by"}
    measured = {"model": {**model.to_json(), "plan": plan}, "others": [one.to_json() for one in others]}
    return {**call.kind(backend)._asdict(), "choices": best(model, others), "measured": measured}
