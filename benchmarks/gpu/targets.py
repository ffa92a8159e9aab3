"""What is asked of a GPU, held against what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attractor_kernels.bench.results import Entry, Row

from .state import State

_UNKNOWN_MAP = "unknown map anderson"


@dataclass(frozen=True)
class Target:
    """value None: not measured. at_least: or at most."""

    what: str
    wanted: float
    value: float | None
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.wanted if self.at_least else self.value <= self.wanted

    @property
    def wanted_text(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.wanted:g}"


def targets(states: dict[str, State]) -> list[Target]:
    """All of them, in the order of the kernels."""
    rows = [
        Row.from_json(row) for state in states.values() for case in state.cases.values() for row in case.get("rows", ())
    ]
    return [*_cells(rows), *_accelerated(rows), *_steps(rows), *_maps(rows, states), *_training(rows, states)]


def _find(rows: Iterable[Row], cell: str, batch: int, dims: Iterable[int] | None = None, **fields: str) -> list[Row]:
    return [
        row
        for row in rows
        if (row.cell, row.batch) == (cell, batch)
        and (dims is None or row.dim in dims)
        and all(getattr(row, name) == value for name, value in fields.items())
    ]


def _timed(row: Row) -> list[Entry]:
    return [entry for entry in row.entries.values() if entry.ours and entry.seconds]


def _worst_ratio(rows: Iterable[Row], theirs: str) -> float | None:
    """Over the rows, of the ratio of our fastest entry; a row where we have no speed counts as 0."""
    found = []
    for row in rows:
        rival = row.entries.get(theirs)
        if rival is None or rival.seconds is None:
            continue
        best = min((entry.seconds or 0.0 for entry in _timed(row)), default=None)
        found.append(rival.seconds / best if best else 0.0)
    return min(found, default=None)


def _worst_fraction(rows: Iterable[Row]) -> float | None:
    found = []
    for row in rows:
        best = min(_timed(row), key=lambda entry: entry.seconds or 0.0, default=None)
        floor = best.facts.get("floor_seconds") if best else None
        found.append(floor / best.seconds if best and best.seconds and floor else 0.0)
    return min(found, default=None)


def _cells(rows: list[Row]) -> Iterator[Target]:
    forward = {"which": "forward", "family": "orth"}
    large = _find(rows, "affine", 65536, **forward)
    yield Target("affine 65536 x 128, 256, mixed: fraction of the floor", 0.5, _worst_fraction(large))
    middle = _find(rows, "affine", 4096, (64, 128, 256, 512), **forward)
    for rival, wanted in (("naive", 20), ("compiled graphed", 4), ("jax", 3)):
        yield Target(f"affine 4096 x 64..512: {rival} / ours", wanted, _worst_ratio(middle, rival))
    few = [row for batch in (1, 32) for row in _find(rows, "affine", batch, (1024,), **forward)]
    yield Target("affine 1, 32 x 1024: naive / ours", 10, _worst_ratio(few, "naive"))


def _accelerated(rows: list[Row]) -> Iterator[Target]:
    """Anderson where it halves the steps, and Auto beside the better of the two, per precision and backend."""
    gains, regrets = [], []
    for row in rows:
        if row.family != "sym" or row.which != "forward":
            continue
        for rest in {entry.name.partition(" ")[2] for entry in _timed(row)}:
            one = {name: row.entries.get(f"{name} {rest}") for name in ("picard", "anderson", "auto")}
            times = {name: entry.seconds for name, entry in one.items() if entry is not None and entry.seconds}
            if len(times) < 3:
                continue
            steps = {name: entry.facts["steps_mean"] for name, entry in one.items() if entry is not None}
            if 2 * steps["anderson"] <= steps["picard"]:
                gains.append(times["picard"] / times["anderson"])
            regrets.append(times["auto"] / min(times["picard"], times["anderson"]))
    yield Target("sym, steps halved: picard / anderson", 1, min(gains, default=None))
    yield Target("sym: auto / the better of the two", 1.05, max(regrets, default=None), at_least=False)


def _steps(rows: list[Row]) -> Iterator[Target]:
    large = _find(rows, "anderson_step", 1, (10**5, 10**6, 10**7), dtype="float32", family="history 5")
    yield Target("anderson_step 1e5..1e7: fraction of the floor", 0.8, _worst_fraction(large))
    yield Target("anderson_step 1e5..1e7: torchdeq / ours", 5, _worst_ratio(large, "torchdeq"))
    small = _find(rows, "anderson_step", 1, (512,), dtype="float32", family="history 5")
    times = [min(entry.seconds or 0.0 for entry in _timed(row)) / row.picard_steps for row in small if _timed(row)]
    yield Target("anderson_step 512: microseconds", 8, 1e6 * max(times) if times else None, at_least=False)


def _maps(rows: list[Row], states: dict[str, State]) -> Iterator[Target]:
    for batch, wanted in ((1, 4), (768, 1.3)):
        found = _worst_ratio(_find(rows, "callable", batch), "torch loop")
        yield Target(f"transformer map, batch {batch}: torch loop / ours", wanted, found)
    case = states["activity"].cases.get(_UNKNOWN_MAP) if "activity" in states else None
    yield Target("unknown map: waits of the host", 0, None if case is None else float(case["waits"]), at_least=False)


def _training(rows: list[Row], states: dict[str, State]) -> Iterator[Target]:
    both = _find(rows, "affine", 4096, (128,), which="forward+backward", family="orth")
    yield Target("affine 4096 x 128, forward+backward: naive / ours", 10, _worst_ratio(both, "naive"))
    cases = states["training"].cases if "training" in states else {}
    peaks = [list(c["peak_bytes"].values()) for n, c in cases.items() if "peak_bytes" in c and n != "memory naive"]
    grown = max((values[-1] / values[0] for values in peaks), default=None)
    yield Target("peak memory, 512 steps / 8", 1.01, grown, at_least=False)
