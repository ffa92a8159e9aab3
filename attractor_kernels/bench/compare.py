"""A saved baseline of ratios, and whether a run is worse.

Ratios of times taken side by side carry over from run to run and, roughly, from machine to machine; times do not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import Report


@dataclass(frozen=True)
class Worsening:
    """A ratio that fell by more than the tolerance."""

    key: str
    ours: str
    theirs: str
    was: float
    now: float

    def __str__(self) -> str:
        return f"{self.key}: {self.theirs} / {self.ours} was {self.was:.2f}, is {self.now:.2f}"


def baseline(report: Report, theirs: str = "naive") -> dict[str, Any]:
    """Ratios of a run against one contender, by case and variant of ours."""
    ratios: dict[str, dict[str, float]] = {}
    for row in report.rows:
        found = {
            entry.name: round(ratio, 3)
            for entry in row.entries.values()
            if entry.ours and (ratio := row.ratio(theirs, entry.name)) is not None
        }
        if found:
            ratios[row.key] = found
    where = {"machine": report.machine, "versions": report.versions, "commit": report.commit, "date": report.date}
    return {**where, "theirs": theirs, "ratios": ratios}


def write_baseline(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(baseline(report), indent=1) + "\n")


def worsened(report: Report, saved: dict[str, Any], tolerance: float) -> tuple[list[Worsening], int]:
    """Ratios more than `tolerance` (a fraction) below the saved ones, and how many were compared.

    A case that has no speed any more, because it is wrong or does not converge, counts as fallen to 0.
    """
    found, compared = [], 0
    theirs = saved["theirs"]
    for row in report.rows:
        for mine, was in saved["ratios"].get(row.key, {}).items():
            if mine not in row.entries or theirs not in row.entries:
                continue
            compared += 1
            now = row.ratio(theirs, mine) or 0.0
            if now < was * (1.0 - tolerance):
                found.append(Worsening(row.key, mine, theirs, was, now))
    return found, compared


def read_baseline(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text())
    if not isinstance(value, dict) or "ratios" not in value or "theirs" not in value:
        raise ValueError(f"{path} is not a baseline of ratios: it lacks 'ratios' or 'theirs'")
    return value
