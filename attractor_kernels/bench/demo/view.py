"""The demonstration's table, picture and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from ..plots import COLOURS, histogram, new_figure, save
from ..tables import seconds
from .train import Outcome

_COLOUR = {"unrolled": COLOURS[1], "attractor_kernels": COLOURS[0]}


def megabytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB"


def table(outcomes: dict[str, Outcome]) -> Table:
    """Both variants side by side, and what was gained."""
    naive, mine = outcomes["unrolled"], outcomes["attractor_kernels"]
    found = Table("", "unrolled", "attractor_kernels", "gain", title="handwritten digits", title_justify="left")
    for column in found.columns[1:]:
        column.justify = "right"
    found.add_row("test accuracy", f"{100 * naive.accuracy:.1f} %", f"{100 * mine.accuracy:.1f} %", "")
    found.add_row("loss at the end", f"{naive.losses[-1]:.4f}", f"{mine.losses[-1]:.4f}", "")
    faster = naive.step_seconds / mine.step_seconds
    found.add_row("training step, median", seconds(naive.step_seconds), seconds(mine.step_seconds), f"{faster:.1f}x")
    if naive.memory is not None and mine.memory is not None:
        less = naive.memory.rise / max(mine.memory.rise, 1)
        found.add_row(
            "peak memory of a step",
            megabytes(naive.memory.rise),
            megabytes(mine.memory.rise),
            f"{less:.1f}x" if mine.memory.rise > 1e5 else "",
        )
    found.add_row("steps per problem, mean", f"{naive.mean_steps:.1f}", f"{mine.mean_steps:.1f}", "")
    found.add_row("steps per problem, most", str(max(naive.steps)), str(max(mine.steps)), "")
    return found


def plot(outcomes: dict[str, Outcome], path: Path) -> Path:
    """Loss, time per step, peak memory and steps per problem."""
    figure, axes = new_figure(13, 3.6, cols=4)
    loss, times, memory, steps = axes[0]
    for variant, outcome in outcomes.items():
        style = "-" if variant == "unrolled" else "--"
        loss.plot(outcome.losses, style, color=_COLOUR[variant], label=variant, linewidth=1.5)
        histogram(steps, outcome.steps, _COLOUR[variant], variant)
    loss.set(title="loss", xlabel="training step", yscale="log")
    steps.set(title="steps per problem (test set)", yscale="log")
    _bars(times, {v: 1e3 * o.step_seconds for v, o in outcomes.items()}, "training step, ms")
    _bars(memory, {v: o.memory.rise / 1e6 for v, o in outcomes.items() if o.memory}, "peak memory of a step, MB")
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in (loss, steps):
        axis.legend(fontsize=7, frameon=False)
    return save(figure, path)


def _bars(axis: Any, values: dict[str, float], title: str) -> None:
    drawn = axis.bar(list(values), list(values.values()), color=[_COLOUR[v] for v in values])
    axis.bar_label(drawn, fmt="%.3g")
    axis.margins(y=0.1)
    axis.set_title(title)


def to_json(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    return {
        variant: {
            "accuracy": o.accuracy,
            "final_loss": o.losses[-1],
            "median_step_seconds": o.step_seconds,
            "peak_memory_rise_bytes": o.memory.rise if o.memory else None,
            "memory_measured_by": o.memory.how if o.memory else None,
            "mean_steps": o.mean_steps,
            "steps": {str(k): n for k, n in o.steps.items()},
            "losses": o.losses,
        }
        for variant, o in outcomes.items()
    }
