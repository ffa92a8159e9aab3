"""What `attractor-kernels demo` does: progress while it trains, then the table and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import machine
from .model import Settings
from .train import Outcome, Watcher, compare
from .view import plot, to_json
from .view import table as make_table


def run_demo(settings: Settings, out: Console, folder: Path, table: bool = True) -> dict[str, Any]:
    """Trains, compares, writes the picture; the results as plain values."""
    outcomes = _train(settings, out)
    path = plot(outcomes, folder / "demo.png")
    if table:
        out.print(make_table(outcomes))
        how = {o.memory.how for o in outcomes.values() if o.memory}
        out.print(
            f"Same start, same batches, a step of one and then of the other. Peak memory: resident, above what the "
            f"process had before, each in a process of its own ({', '.join(how)}).\npicture: {path}",
            soft_wrap=True,
            highlight=False,
        )
    return {
        "variants": to_json(outcomes),
        "settings": vars(settings),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "plot": str(path),
    }


def _train(settings: Settings, out: Console) -> dict[str, Outcome]:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("loading the digits", total=None)
        watcher = Watcher(
            start=lambda total: bar.update(task, total=total),
            step=lambda losses: bar.update(
                task, advance=1, description="loss " + ", ".join(f"{v} {x:.4f}" for v, x in losses.items())
            ),
            measuring=lambda variant: bar.update(task, description=f"measuring the memory of {variant}"),
        )
        return compare(settings, watcher)
