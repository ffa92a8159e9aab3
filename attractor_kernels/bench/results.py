"""Results as plain values: rows, ratios, geometric means, and the JSON file they live in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass
class Entry:
    """One contender on one case. `seconds` is None where there is no speed to report; `why` then says why not."""

    name: str
    ours: bool = False
    seconds: float | None = None  # median of one call
    low: float | None = None  # quartiles
    high: float | None = None
    repeats: int = 0
    calls: int = 0  # calls averaged within a sample
    error: float | None = None  # relative, against float64; None: nothing to check
    worst_row: float | None = None
    why: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """One case and pass, with everybody who took part."""

    cell: str
    family: str
    batch: int
    dim: int
    dtype: str
    which: str  # pass
    picard_steps: int
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.dim}"

    @property
    def key(self) -> str:
        return f"{self.cell}/{self.dtype}/{self.which}/{self.family}/{self.shape}"

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What a geometric mean is taken over the shapes of."""
        return self.cell, self.dtype, self.which, self.family

    def ratio(self, theirs: str, ours: str) -> float | None:
        """Seconds of `theirs` over seconds of `ours`: how many times faster we are. None unless both have a speed."""
        a, b = self.entries.get(theirs), self.entries.get(ours)
        if a is None or b is None or a.seconds is None or b.seconds is None:
            return None
        return a.seconds / b.seconds

    def step_costs(self) -> dict[str, float] | None:
        """For a map the package does not know: seconds that a step costs beyond the map, ours and torchdeq's, and
        theirs over ours. None where one of them has no speed."""
        found = (self.entries.get(name) for name in ("anderson", "torchdeq anderson", "floor"))
        times = [
            entry.seconds / self.picard_steps for entry in found if entry is not None and entry.seconds is not None
        ]
        if self.cell != "callable" or len(times) != 3:
            return None
        mine, theirs, floor = times
        # Nothing is divided by what lies within the timer's own scatter.
        own = max(mine - floor, 0.001 * floor)
        return {"ours": mine - floor, "torchdeq": theirs - floor, "ratio": (theirs - floor) / own}

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        value["pass"] = value.pop("which")
        mine = [e.name for e in self.entries.values() if e.ours]
        value["ratios"] = {
            m: {t: r for t in self.entries if t not in mine and (r := self.ratio(t, m)) is not None} for m in mine
        }
        value["step_costs"] = self.step_costs()
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Row:
        entries = {name: Entry(**entry) for name, entry in value["entries"].items()}
        fields = {k: value[k] for k in ("cell", "family", "batch", "dim", "dtype", "picard_steps")}
        return cls(**fields, which=value["pass"], entries=entries)


@dataclass
class Report:
    """A whole run."""

    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def names(self, rows: Iterable[Row], ours: bool) -> list[str]:
        """Contenders in the order in which they first appear."""
        seen = {e.name: None for row in rows for e in row.entries.values() if e.ours == ours}
        return list(seen)

    def groups(self) -> dict[tuple[str, str, str, str], list[Row]]:
        grouped: dict[tuple[str, str, str, str], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(row.group, []).append(row)
        return grouped

    def summaries(self) -> list[dict[str, Any]]:
        """Per group and variant of ours: geometric mean and smallest of every ratio over the shapes that have it."""
        found = []
        for (cell, dtype, which, family), rows in self.groups().items():
            for mine in self.names(rows, ours=True):
                ratios = {}
                for theirs in self.names(rows, ours=False):
                    values = [r for row in rows if (r := row.ratio(theirs, mine)) is not None]
                    if values:
                        ratios[theirs] = {
                            "geometric_mean": geometric_mean(values),
                            "smallest": min(values),
                            "shapes": len(values),
                        }
                found.append(
                    {"cell": cell, "dtype": dtype, "pass": which, "family": family, "ours": mine, "ratios": ratios}
                )
        return found

    def to_json(self) -> dict[str, Any]:
        head = {"schema": SCHEMA, **{k: v for k, v in asdict(self).items() if k != "rows"}}
        return {**head, "summaries": self.summaries(), "rows": [row.to_json() for row in self.rows]}

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Report:
        if value.get("schema") != SCHEMA:
            raise ValueError(f"schema of the results must be {SCHEMA}, got {value.get('schema')!r}")
        head = {k: value[k] for k in ("date", "commit", "machine", "versions", "settings")}
        return cls(**head, rows=[Row.from_json(row) for row in value["rows"]])

    @classmethod
    def read(cls, path: Path) -> Report:
        return cls.from_json(json.loads(path.read_text()))


def geometric_mean(values: Iterable[float]) -> float:
    """
    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    logarithms = [math.log(v) for v in values]
    if not logarithms:
        raise ValueError("values must not be empty")
    return math.exp(math.fsum(logarithms) / len(logarithms))
