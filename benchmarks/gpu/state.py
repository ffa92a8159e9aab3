"""How far a section is: a file that is whole at every moment, so that whoever comes next can go on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RUNNING, DONE, FAILED, SKIPPED = "running", "done", "failed", "not run"


@dataclass
class State:
    """A section's results.

    Attributes:
        status: "running", "done", "failed" (not all cases were tried) or "not run".
        reason: why it failed or was not run.
        current: the case that is being run.
        cases: results by case.
        failed: why a case has none.
    """

    section: str
    status: str = RUNNING
    reason: str | None = None
    seconds: float = 0.0
    current: str | None = None
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        """What was found wrong by cases that ran."""
        return [f"{name}: {what}" for name, case in self.cases.items() for what in case.get("problems", ())]

    @property
    def good(self) -> bool:
        return self.status == DONE and not self.failed and not self.problems

    def tried(self, name: str) -> bool:
        return name in self.cases or name in self.failed

    def write(self, folder: Path) -> None:
        path = folder / f"{self.section}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        os.replace(partial, path)

    @classmethod
    def read(cls, folder: Path, section: str) -> State | None:
        path = folder / f"{section}.json"
        return cls(**json.loads(path.read_text())) if path.exists() else None
