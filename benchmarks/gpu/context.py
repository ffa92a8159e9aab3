"""What a section is given, and what it gives."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sizes import DRY, FULL, Sizes

if TYPE_CHECKING:
    from .device import Device

ROOT = Path(__file__).resolve().parents[2]

Result = dict[str, Any]  # plain values; "rows": comparisons, "problems": what is not as it must be
Case = tuple[str, Callable[[], Result]]
Cases = Iterable[Case]


@dataclass(frozen=True)
class Context:
    """One run of the command.

    Attributes:
        out: folder of the results.
        dry: on the CPU, at tiny sizes, with the tools of a GPU replaced.
        wheel: a wheel to prove instead of building one.
        in_place: build beside the sources instead.
    """

    out: Path
    dry: bool = False
    wheel: Path | None = None
    in_place: bool = False

    @property
    def sizes(self) -> Sizes:
        return DRY if self.dry else FULL

    @cached_property
    def device(self) -> Device:
        # Not at the top: the section that builds the package must not import it.
        from .device import Dry, Gpu

        return Dry() if self.dry else Gpu()

    @property
    def site(self) -> Path:
        """Where the wheel is installed."""
        return self.out / "site"

    def earlier(self, section: str) -> dict[str, Any]:
        """Results of another section's cases, by name."""
        path = self.out / f"{section}.json"
        if not path.exists():
            raise FileNotFoundError(f"this needs the section {section}, which has not been run: {path} is missing")
        found: dict[str, Any] = json.loads(path.read_text())["cases"]
        return found

    def environment(self) -> dict[str, str]:
        """Of every process started: the installed wheel comes before the sources, the folder it runs in never."""
        paths = [*([str(self.site)] if self.site.is_dir() else []), str(ROOT)]
        paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "PYTHONSAFEPATH": "1",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX would take three quarters of the device's memory
        }

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]
