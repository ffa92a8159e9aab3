"""A profile for the terminal, as a picture, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from .plots import COLOURS, histogram, new_figure, save
from .profile import Profile
from .tables import seconds

_WIDTH = 40  # of a bar in the terminal
_LINES = 24  # of a histogram in the terminal, at most

_MEANING = {
    "call": "front door, packing, reading and writing the state",
    "products": "Picard with the identity as activation, less call",
    "activation": "Picard, less Picard with the identity",
    "products and activation": "Picard, less call",
    "mixing": "the solver at the same steps for all rows, less Picard",
    "waiting": "the solve, less the solver at the mean steps for all rows",
}


def to_json(profile: Profile) -> dict[str, Any]:
    value = asdict(profile)
    value["mean_steps"], value["slowest"] = profile.mean_steps, profile.slowest
    value["steps"] = {str(k): n for k, n in profile.steps.items()}
    return value


def renderables(profile: Profile) -> Iterator[RenderableType]:
    """What `attractor-kernels profile` prints."""
    yield _parts(profile)
    yield _rates(profile)
    yield _steps(profile)
    yield _calls(profile)
    if profile.plan is not None:
        table = Table(title="tile plan", title_justify="left", show_header=False)
        for name, value in profile.plan.items():
            table.add_row(name, str(value))
        yield table


def _parts(profile: Profile) -> Table:
    title = f"{profile.case}: {profile.solver}, {profile.precision}, backend {profile.backend}"
    table = Table("part", "time", "share", "measured as", title=title, title_justify="left")
    for name, value in profile.parts.items():
        shown = seconds(value) if value > 0 else f"-{seconds(-value)}"
        table.add_row(name, shown, f"{100 * value / profile.seconds:.0f} %", _MEANING[name])
    table.add_section()
    table.add_row("whole solve", seconds(profile.seconds), "100 %", "the public call")
    for column in (1, 2):
        table.columns[column].justify = "right"
    return table


def _rates(profile: Profile) -> Table:
    table = Table("rate", "ours", "machine", "of it", title="against the machine, same run", title_justify="left")
    rows = [
        ("GFLOP/s over the whole solve", profile.gflops, profile.gflops_mm),
        ("GFLOP/s in the products", profile.gflops_products, profile.gflops_mm),
        ("GB/s of what must move", profile.gbytes, profile.gbytes_copy),
    ]
    for name, mine, machine in rows:
        if mine == mine:
            table.add_row(name, f"{mine:.1f}", f"{machine:.1f}", f"{100 * mine / machine:.0f} %")
    table.caption = "machine: torch.mm of one step of the batch; copy of a tensor of the injection's size"
    return table


def bins(steps: dict[int, int], most: int = _LINES) -> dict[tuple[int, int], int]:
    """Counts in ranges of steps (first, last), as narrow as `most` lines allow.

    >>> bins({3: 1, 4: 2, 9: 1}, most=4)
    {(3, 4): 3, (5, 6): 0, (7, 8): 0, (9, 10): 1}
    """
    low, high = min(steps), max(steps)
    width = -(-(high - low + 1) // most)
    counts = {(start, start + width - 1): 0 for start in range(low, high + 1, width)}
    for value, n in steps.items():
        start = low + (value - low) // width * width
        counts[(start, start + width - 1)] += n
    return counts


def _steps(profile: Profile) -> Table:
    title = f"steps per problem: mean {profile.mean_steps:.1f}, slowest {profile.slowest}"
    table = Table("steps", "problems", "", title=title, title_justify="left")
    counts = bins(profile.steps)
    most = max(counts.values())
    for (first, last), n in counts.items():
        table.add_row(str(first) if first == last else f"{first}-{last}", str(n), "█" * round(_WIDTH * n / most))
    waste = profile.slowest * profile.problems / profile.row_steps
    table.caption = f"a batch that waits for its slowest member does {waste:.2f} times the work"
    return table


def _calls(profile: Profile) -> Table:
    table = Table("", "operations", "host synchronisations", title="per solve", title_justify="left")
    for name, calls in profile.calls.items():
        table.add_row(name, str(calls.operations), str(calls.synchronisations))
    return table


def plot(profile: Profile, path: Path) -> Path:
    """Where the time goes, and steps per problem."""
    figure, axes = new_figure(11, 4.2, cols=2)
    bars, counts = axes[0]
    names = list(profile.parts)
    shares = [100 * profile.parts[name] / profile.seconds for name in names]
    drawn = bars.barh(names[::-1], shares[::-1], color=[COLOURS[i % len(COLOURS)] for i in range(len(names))][::-1])
    bars.bar_label(drawn, [f"{share:.0f} %" for share in shares[::-1]], padding=3)
    bars.set_xlabel(f"share of {seconds(profile.seconds)}")
    lowest = min(shares)
    bars.set_xlim(lowest - 12 if lowest < 0 else 0, max(shares) + 12)
    bars.spines[["top", "right"]].set_visible(False)
    bars.set_title(f"{profile.case}: {profile.solver}, {profile.precision}", loc="left", fontsize=10)
    histogram(counts, profile.steps)
    counts.set_title(
        f"mean {profile.mean_steps:.1f}, slowest {profile.slowest}; {profile.gflops:.0f} GFLOP/s, "
        f"torch.mm {profile.gflops_mm:.0f}",
        loc="left",
        fontsize=10,
    )
    return save(figure, path)
