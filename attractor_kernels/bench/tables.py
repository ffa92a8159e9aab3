"""Results as tables: for the terminal, and in Markdown for the README."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from .results import Report, Row, geometric_mean


def seconds(value: float | None) -> str:
    """
    >>> seconds(0.00123)
    '1.23 ms'
    """
    if value is None:
        return "-"
    if value <= 0:
        return "0"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def columns(report: Report, rows: list[Row]) -> list[str]:
    """Everybody who is not us; the floor last, since it is a bound and not a rival."""
    names = report.names(rows, ours=False)
    return [name for name in names if name != "floor"] + [name for name in names if name == "floor"]


def cell_text(row: Row, theirs: str, mine: str) -> str:
    ratio = row.ratio(theirs, mine)
    if ratio is not None:
        return f"{1 / ratio:.2f}" if theirs == "floor" else f"{ratio:.2f}"
    entry = row.entries.get(theirs)
    if entry is None:
        return ""
    return "wrong" if (entry.why or "").startswith("wrong") else "-"


def heading(theirs: str) -> str:
    return "ours / floor" if theirs == "floor" else f"{theirs} / ours"


def lines(report: Report, rows: list[Row], mine: str) -> Iterator[list[str]]:
    """The body of one table: a line per shape, then the geometric means over the shapes."""
    names = columns(report, rows)
    for row in rows:
        entry = row.entries[mine]
        steps = f"{entry.facts.get('steps_mean', float('nan')):.1f} / {entry.facts.get('steps_max', '-')}"
        speed = seconds(entry.seconds) if entry.seconds is not None else f"no speed: {entry.why}"
        error = "-" if entry.error is None else f"{entry.error:.0e}"
        yield [row.shape, str(row.picard_steps), steps, error, speed, *(cell_text(row, name, mine) for name in names)]
    means = []
    for name in names:
        ratios = [r for row in rows if (r := row.ratio(name, mine)) is not None]
        mean = geometric_mean(ratios) if ratios else None
        shown = "-" if mean is None else f"{1 / mean if name == 'floor' else mean:.2f}"
        means.append(shown if len(ratios) in (0, len(rows)) else f"{shown} ({len(ratios)} shapes)")
    yield ["geometric mean", "", "", "", "", *means]


# Instruction sets with products of changes in few bits, for precision="mixed" (csrc/cpu/narrow.h).
NARROW_PRODUCTS = ("avx512vnni", "avx512bf16", "avx512amx")
HEAD = ["batch x state", "Picard", "steps", "error", "ours"]


def result_tables(report: Report) -> Iterator[Table]:
    """One table per cell, dtype, pass, family and variant of ours."""
    for (cell, dtype, which, family), rows in report.groups().items():
        for mine in report.names(rows, ours=True):
            title = f"{cell} {dtype}, {family}, {which}: ak.fixed_point, {mine}"
            table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
            rivals = [heading(name) for name in columns(report, rows)]
            for name in [*HEAD, *(text.replace(" ", "\n").replace("/\n", "/ ") for text in rivals)]:
                table.add_column(name, justify="left" if name == HEAD[0] else "right", no_wrap=True, vertical="bottom")
            *body, means = lines(report, rows, mine)
            for line in body:
                ratios = (_coloured(report, rows, i, text) for i, text in enumerate(line[len(HEAD) :]))
                table.add_row(*line[: len(HEAD)], *ratios)
            table.add_section()
            table.add_row(*(Text(text, style="bold") for text in means))
            yield table


LEGEND = (
    "Picard: steps of the slowest row of a Picard solve; naive, compiled and floor take as many. steps: ours, mean / "
    "most. error: against float64. Ratios are of times measured side by side; red: we are slower."
)


def _coloured(report: Report, rows: list[Row], column: int, text: str) -> Text:
    """Slower than a rival in red, so that it is seen."""
    rival = columns(report, rows)[column] != "floor"
    try:
        lost = rival and float(text) < 1.0
    except ValueError:
        lost = text == "wrong"
    return Text(text, style="bold red" if lost else "")


def reasons(report: Report) -> list[str]:
    """Why contenders have no speed, each reason once, with how often it applied."""
    counts: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        for entry in row.entries.values():
            if entry.why:
                counts.setdefault((entry.name, entry.why), []).append(row.key)
    return [
        f"{name}: {why} ({where[0]}" + (f" and {len(where) - 1} more)" if len(where) > 1 else ")")
        for (name, why), where in counts.items()
    ]


def notes(report: Report) -> list[str]:
    """What one has to know about this run to read it."""
    found = []
    kernels = report.machine.get("instruction_set")
    names = report.names(report.rows, ours=True)
    if kernels is not None and kernels not in NARROW_PRODUCTS and any("mixed" in name for name in names):
        found.append(f"precision mixed is precision full here: the kernels for {kernels} have no products in few bits")
    if report.settings.get("interrupted"):
        found.append("interrupted: not all cases were measured")
    return found


def step_cost_lines(report: Report) -> list[str]:
    """What a step of the loop costs beside a map the package does not know."""
    found = []
    for row in report.rows:
        if (costs := row.step_costs()) is not None:
            found.append(
                f"callable {row.family} {row.shape}: beside the map, a step costs {seconds(costs['ours'])}, "
                f"torchdeq's {seconds(costs['torchdeq'])}: {costs['ratio']:.1f} times as much"
            )
    return found


def machine_line(report: Report) -> str:
    where, versions = report.machine, report.versions
    gpu = where.get("gpu")
    parts = [
        *([f"{gpu['name']}, driver {gpu.get('driver_version', 'unknown')}, CUDA {gpu['cuda']}"] if gpu else []),
        f"{where['cpu']}, {where['threads']} thread{'s' if where['threads'] != 1 else ''}",
        f"kernels {where['instruction_set'] or 'unknown'}",
        *(f"{name} {versions[name]}" for name in ("torch", "torchdeq", "jax") if name in versions),
        f"commit {report.commit}",
        report.date,
    ]
    return " · ".join(parts)


def markdown(report: Report) -> str:
    """The geometric means of a run as Markdown tables, with the machine named."""
    parts = [machine_line(report), ""]
    by_section: dict[tuple[str, str, str], list[dict[str, object]]] = {}
    for summary in report.summaries():
        by_section.setdefault((str(summary["cell"]), str(summary["dtype"]), str(summary["pass"])), []).append(summary)
    for (cell, dtype, which), summaries in by_section.items():
        rows = [row for row in report.rows if (row.cell, row.dtype, row.which) == (cell, dtype, which)]
        names = columns(report, rows)
        parts += [f"**{cell} {dtype}, {which}**", ""]
        parts += ["| family | ours | " + " | ".join(heading(name) for name in names) + " |"]
        parts += ["|---|---|" + "---:|" * len(names)]
        for summary in summaries:
            ratios = summary["ratios"]
            assert isinstance(ratios, dict)
            shown = []
            for name in names:
                if name not in ratios:
                    shown.append("-")
                    continue
                mean = ratios[name]["geometric_mean"]
                shown.append(f"{1 / mean:.2f}" if name == "floor" else f"{mean:.1f} ({ratios[name]['smallest']:.1f})")
            parts.append(f"| {summary['family']} | {summary['ours']} | " + " | ".join(shown) + " |")
        parts.append("")
    parts.append("Geometric means over the shapes; in parentheses the smallest.")
    return "\n".join(parts) + "\n"
