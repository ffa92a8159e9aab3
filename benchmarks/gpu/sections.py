"""What is run, in this order; a section may use the results of those before it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Section:
    """A module of this folder with a function cases(context).

    Attributes:
        limit: seconds after which it is ended.
        case_limit: likewise one of its cases: a kernel that waits for ever costs no more.
    """

    name: str
    about: str
    limit: float
    case_limit: float

    def module(self) -> ModuleType:
        return importlib.import_module(f"{__package__}.{self.name}")


SECTIONS = {
    section.name: section
    for section in (
        Section("build", "the wheel, built here or elsewhere, and what it finds", 240, 240),
        Section("suite", "the tests marked gpu", 150, 150),
        Section("sanitizer", "memcheck and racecheck on small cases", 90, 45),
        Section("ceilings", "what copies, products and special functions reach", 20, 10),
        Section("steps", "the fused step of an unknown map", 45, 20),
        Section("cells", "whole solves of known maps", 120, 45),
        Section("maps", "unknown maps: the loop on the device and on the host", 45, 30),
        Section("training", "gradients and peak memory", 60, 30),
        Section("activity", "launches and waits of the host", 30, 15),
        Section("plans", "the cost model's plans beside others, and a table of the better ones", 400, 60),
    )
}


def chosen(only: list[str], start: str | None) -> list[Section]:
    """The sections asked for, in their order. ValueError for a name there is not."""
    for name in (*only, *([start] if start else [])):
        if name not in SECTIONS:
            raise ValueError(f"a section must be one of {', '.join(SECTIONS)}, got {name!r}")
    names = list(SECTIONS)
    kept = names[names.index(start) :] if start else names
    return [SECTIONS[name] for name in kept if not only or name in only]
