"""Results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import Report, Row, geometric_mean
from .tables import columns, machine_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito 2008); grey is kept for the floor.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
FLOOR_COLOUR = "#999999"


def new_figure(width: float, height: float, rows: int = 1, cols: int = 1) -> tuple[Figure, Any]:
    """A figure that needs no display, and its axes as an array [rows, cols]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, cols, squeeze=False)


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def plot_report(report: Report, folder: Path, stem: str) -> list[Path]:
    """One picture per cell, dtype and pass: how many times faster than everybody else, by shape and family."""
    sections: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for (cell, dtype, which, family), rows in report.groups().items():
        sections.setdefault((cell, dtype, which), {})[family] = rows
    paths = []
    for (cell, dtype, which), families in sections.items():
        figure, axes = new_figure(13, 4.2 * len(families), rows=len(families))
        for axis, (family, rows) in zip(axes[:, 0], families.items(), strict=True):
            mine = report.names(rows, ours=True)[0]
            _ratio_bars(axis, report, rows, mine)
            axis.set_title(
                f"{cell} {dtype}, {family}, {which}: time of the others / time of ours ({mine})",
                loc="left",
                fontsize=10,
            )
        figure.supxlabel(machine_line(report), fontsize=7, color="#666666")
        name = f"{stem}-{cell}-{dtype}-{which.replace('+', '-')}.png"
        paths.append(save(figure, folder / name))
    return paths


def _ratio_bars(axis: Axes, report: Report, rows: Sequence[Row], mine: str) -> None:
    names = columns(report, list(rows))
    width = 0.8 / max(len(names), 1)
    last = len(rows) + 0.4  # a gap sets the means apart
    heights = [1.0]
    for index, name in enumerate(names):
        offset = (index - (len(names) - 1) / 2) * width
        found = [(i, r) for i, row in enumerate(rows) if (r := row.ratio(name, mine)) is not None]
        if not found:
            continue
        means = [(last, geometric_mean([r for _, r in found]))]
        colour = FLOOR_COLOUR if name == "floor" else COLOURS[index % len(COLOURS)]
        label = "floor (products alone)" if name == "floor" else name
        bars = axis.bar(
            [x + offset for x, _ in found + means],
            [r for _, r in found + means],
            width * 0.92,
            color=colour,
            label=label,
        )
        axis.bar_label(bars, [number(r) for _, r in found + means], fontsize=6, rotation=90, padding=2)
        heights += [r for _, r in found + means]
    # With room for the numbers. Left to matplotlib, bars that differ in the last bit alone would make a scale of no
    # height, and an error.
    axis.set_ylim(0.88 * min(heights), 2.8 * max(heights))
    axis.set_yscale("log")
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.axvline(len(rows) - 0.3, color="#cccccc", linewidth=0.8)
    axis.set_xticks([*range(len(rows)), last], [*(row.shape for row in rows), "geometric\nmean"])
    axis.set_ylabel("times faster")
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:  # nobody may have been there to compare with
        # Beside the title, where no bar and no number reaches.
        axis.legend(ncols=len(names), fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))


def number(ratio: float) -> str:
    """
    >>> number(1381.06), number(2.154)
    ('1381', '2.15')
    """
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def histogram(axis: Axes, counts: dict[int, int], colour: str = COLOURS[0], label: str | None = None) -> None:
    """Steps per problem."""
    axis.bar(list(counts), list(counts.values()), width=0.85, color=colour, label=label)
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("steps")
    axis.set_ylabel("problems")
    axis.spines[["top", "right"]].set_visible(False)
