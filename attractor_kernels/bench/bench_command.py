"""What `attractor-kernels bench` does with its options: progress while it measures, then tables, files, comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from . import machine
from .compare import read_baseline, worsened, write_baseline
from .plots import plot_report
from .results import Report
from .runs import Plan, Watcher, run
from .tables import LEGEND, machine_line, markdown, notes, reasons, result_tables, step_cost_lines


@dataclass(frozen=True)
class Outputs:
    """Where things go; None: nowhere."""

    folder: Path | None
    markdown: Path | None = None
    save_baseline: Path | None = None
    compare: Path | None = None
    tolerance: float = 0.3


def progress_bar(out: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=out,
        transient=True,
    )


def measure(plan: Plan, out: Console) -> Report:
    """Runs a plan with a progress bar."""
    with progress_bar(out) as bar:
        task = bar.add_task("", total=None)
        watcher = Watcher(
            start=lambda total: bar.update(task, total=total),
            doing=lambda what: bar.update(task, description=what),
            done=lambda: bar.advance(task),
        )
        return run(plan, watcher)


def show(report: Report, out: Console, outputs: Outputs, tables: bool = True) -> bool:
    """Prints and writes a report; True if ratios are worse than those it was to be compared with."""
    if tables:
        out.print(machine_line(report), soft_wrap=True)
        for table in result_tables(report):
            out.print(table)
        out.print(LEGEND)
        for line in (*step_cost_lines(report), *notes(report), *reasons(report)):
            out.print(line, soft_wrap=True, highlight=False)
    if outputs.folder is not None:
        stem = f"cpu-{machine.slug(report.machine)}"
        path = outputs.folder / f"{stem}.json"
        report.write(path)
        written = [path, *plot_report(report, outputs.folder, stem)]
        out.print("written: " + " ".join(str(p) for p in written), soft_wrap=True)
    if outputs.markdown is not None:
        outputs.markdown.write_text(markdown(report))
    if outputs.save_baseline is not None:
        write_baseline(report, outputs.save_baseline)
    return _compare(report, out, outputs)


def _compare(report: Report, out: Console, outputs: Outputs) -> bool:
    if outputs.compare is None:
        return False
    worse, compared = worsened(report, read_baseline(outputs.compare), outputs.tolerance)
    out.print(
        f"compared {compared} ratios with {outputs.compare}: {len(worse)} worse by more than "
        f"{100 * outputs.tolerance:.0f} %",
        soft_wrap=True,
    )
    for one in worse:
        out.print(f"  {one}", soft_wrap=True, highlight=False)
    return bool(worse)
