"""Everything that the sections found, as one JSON file, pictures, and a short table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from attractor_kernels.bench import machine, plots
from attractor_kernels.bench.cases import RTOL
from attractor_kernels.bench.gate import TOLERANCE
from attractor_kernels.bench.results import Entry, Report, Row
from attractor_kernels.bench.tables import seconds

from .context import Context
from .sections import SECTIONS
from .state import State
from .targets import Target, targets

# Columns of the short table: whoever of these is fastest.
RIVALS = {
    "eager": ("naive", "eager", "torch loop"),
    "graphed": ("graphed",),
    "compiled": ("compiled", "compiled graphed"),
    "torchdeq": ("torchdeq", "torchdeq fpi", "torchdeq anderson"),
    "jax": ("jax",),
}


def read_states(context: Context) -> dict[str, State]:
    """Of all sections that have been run, by this command or an earlier one."""
    found = {name: State.read(context.out, name) for name in SECTIONS}
    return {name: state for name, state in found.items() if state is not None}


def make_report(states: dict[str, State], dry: bool, commit: str | None = None) -> Report:
    """The comparisons, under the machine that the section `build` found."""
    package: dict[str, Any] = states["build"].cases.get("package", {}) if "build" in states else {}
    report = Report(
        machine.today(),
        commit or package.get("commit") or machine.commit(),
        package.get("machine") or machine.machine(),
        package.get("versions") or machine.versions(),
        {"rtol": RTOL, "gate": TOLERANCE, "dry": dry},
    )
    for state in states.values():
        for case in state.cases.values():
            report.rows += [Row.from_json(row) for row in case.get("rows", ())]
    return report


def write(context: Context, states: dict[str, State], report: Report) -> list[Path]:
    """gpu.json and the pictures."""
    found = {
        name: {"status": state.status, "reason": state.reason, "seconds": round(state.seconds, 1)}
        | {"failed": state.failed, "cases": {key: _without_rows(case) for key, case in state.cases.items()}}
        for name, state in states.items()
    }
    held = [{"what": one.what, "wanted": one.wanted, "value": one.value, "met": one.met} for one in targets(states)]
    path = context.out / "gpu.json"
    path.write_text(
        json.dumps({**report.to_json(), "sections": found, "targets": held}, indent=1, allow_nan=False) + "\n"
    )
    paths = [path]
    if any(_best(row, backend) for row in report.rows for backend in _backends(row)):
        paths.append(_plot_fractions(report, context.out / "fractions.png"))
    if memory := _memory(states):
        paths.append(_plot_memory(memory, context.out / "memory.png"))
    forward = replace(report, rows=[row for row in report.rows if row.which == "forward"])
    if forward.rows:
        paths += plots.plot_report(forward, context.out, "times")
    return paths


def _without_rows(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name != "rows"}


def _backends(row: Row) -> list[str]:
    """Those of our entries, in order; an entry's name ends with its backend, or it is that of the front door."""
    return list(dict.fromkeys(str(e.facts.get("backend", "")) for e in row.entries.values() if e.ours))


def _best(row: Row, backend: str) -> Entry | None:
    """Our fastest entry of a backend."""
    timed = [
        e for e in row.entries.values() if e.ours and e.seconds is not None and e.facts.get("backend", "") == backend
    ]
    return min(timed, key=lambda e: e.seconds or 0.0, default=None)


def fraction(entry: Entry) -> float | None:
    """Of its floor that an entry reaches."""
    floor = entry.facts.get("floor_seconds")
    return floor / entry.seconds if floor is not None and entry.seconds else None


def short_table(report: Report) -> Table:
    """A line a case and backend, with its fastest variant."""
    table = Table(title="fastest of ours, by backend", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("case", "ours", "time", "of floor", "bound by", *(f"{rival}\n/ ours" for rival in RIVALS)):
        words = name in ("case", "ours", "bound by")
        table.add_column(name, justify="left" if words else "right", no_wrap=True, min_width=None if words else 7)
    for row in report.rows:
        name = _name(row)
        for backend in _backends(row):
            entry = _best(row, backend)
            if entry is None:
                reasons = [e.why for e in row.entries.values() if e.ours and e.facts.get("backend", "") == backend]
                table.add_row(name, backend, "-", "", (reasons[0] or "")[:60], *[""] * len(RIVALS))
                continue
            reached = fraction(entry)
            # A step of many in a call is what the table is about.
            per_call = row.picard_steps if row.cell == "anderson_step" else 1
            table.add_row(
                name,
                entry.name,
                seconds((entry.seconds or 0.0) / per_call),
                "" if reached is None else f"{100 * reached:.0f} %",
                str(entry.facts.get("bound", "")),
                *(_ratio(row, entry, names) for names in RIVALS.values()),
            )
    return table


def _name(row: Row) -> str:
    """What is not said is float32 and forward."""
    rest = [word for word in (row.dtype, row.which) if word not in ("float32", "forward", "step")]
    return " ".join([row.cell, row.family, row.shape, *rest])


def _ratio(row: Row, entry: Entry, names: Iterable[str]) -> str:
    ratios = [r for name in names if (r := row.ratio(name, entry.name)) is not None]
    if ratios:
        return f"{min(ratios):.1f}"
    wrong = any((e := row.entries.get(name)) is not None and (e.why or "").startswith("wrong") for name in names)
    return "wrong" if wrong else ""


def section_table(states: dict[str, State]) -> Table:
    """How each section ended, and the first of what it found wrong."""
    table = Table(title="sections", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("section", "", "cases", "seconds", "first of what is wrong"):
        table.add_column(name, overflow="fold")
    for name, state in states.items():
        wrong = [*([state.reason] if state.reason else []), *(f"{k}: {v}" for k, v in state.failed.items())]
        wrong += state.problems
        how = "good" if state.good else f"{state.status}, {len(wrong)} wrong" if wrong else state.status
        table.add_row(name, how, str(len(state.cases)), f"{state.seconds:.0f}", wrong[0][:200] if wrong else "")
    return table


def target_table(found: Sequence[Target]) -> Table:
    table = Table(title="asked for", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("what", "wanted", "found", ""):
        table.add_column(name)
    for one in found:
        value = "not measured" if one.value is None else f"{one.value:.3g}"
        table.add_row(one.what, one.wanted_text, value, "" if one.met is None else "met" if one.met else "missed")
    return table


def plans_table(cases: dict[str, dict[str, Any]]) -> Table:
    """A line a call of the section `plans`: the model's plan, the fastest other one, and whether a table takes it."""
    table = Table(title="plans", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("call", "the model's", "fastest other", "", "in the table"):
        table.add_column(name)
    for name, case in cases.items():
        if "entry" not in case:
            table.add_row(name, "-", str(case.get("cannot", ""))[:60])
            continue
        measured = case["entry"]["measured"]
        timed = [one for one in measured["others"] if "median" in one]
        best = min(timed, key=lambda one: one["median"], default=None)
        other = (seconds(best["median"]), _choices(best["choices"])) if best else ("-", "")
        table.add_row(name, seconds(measured["model"]["median"]), *other, _choices(case["entry"]["choices"]))
    return table


def _choices(choices: dict[str, int]) -> str:
    return " ".join(f"{name} {value}" for name, value in choices.items())


def renderables(states: dict[str, State], report: Report) -> list[RenderableType]:
    """What is printed last."""
    found: list[RenderableType] = [short_table(report)] if report.rows else []
    if not report.settings["dry"]:  # a CPU is asked for nothing
        found.append(target_table(targets(states)))
    if "plans" in states:
        found.append(plans_table(states["plans"].cases))
    return [*found, section_table(states)]


def _memory(states: dict[str, State]) -> dict[str, dict[str, int]]:
    cases = states["training"].cases if "training" in states else {}
    return {name: case["peak_bytes"] for name, case in cases.items() if "peak_bytes" in case}


def _plot_memory(memory: dict[str, dict[str, int]], path: Path) -> Path:
    figure, axes = plots.new_figure(8, 4.5)
    axis = axes[0, 0]
    for name, peaks in memory.items():
        axis.plot([int(k) for k in peaks], [value / 2**20 for value in peaks.values()], "o-", label=name)
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="peak of forward and backward, MiB")
    axis.legend(fontsize=7, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return plots.save(figure, path)


def _plot_fractions(report: Report, path: Path) -> Path:
    lines = []
    for row in report.rows:
        for backend in _backends(row):
            if (entry := _best(row, backend)) is not None and (reached := fraction(entry)) is not None:
                lines.append((f"{_name(row)}, {entry.name}", reached))
    figure, axes = plots.new_figure(11, 1.5 + 0.25 * len(lines))
    axis = axes[0, 0]
    bars = axis.barh(range(len(lines)), [100 * value for _, value in lines], color=plots.COLOURS[0])
    axis.bar_label(bars, [f"{100 * value:.0f}" for _, value in lines], fontsize=7, padding=2)
    axis.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("per cent of the floor's rate")
    axis.spines[["top", "right"]].set_visible(False)
    return plots.save(figure, path)
