"""The command line: `attractor-kernels info | bench | profile | demo`.

It needs a few packages that the library itself does not; without them it says which.
"""

from __future__ import annotations

import sys

# What the commands import, and the extra that brings it.
_EXTRAS = {"typer": "cli", "rich": "cli", "matplotlib": "demo", "numpy": "demo", "sklearn": "demo"}


def missing_message(module: str | None) -> str | None:
    """What to tell a user who lacks this module, or None where it is not one of an extra's.

    >>> missing_message("sklearn.datasets")
    "this needs sklearn, which is not installed: pip install 'attractor_kernels[demo]'"
    """
    name = (module or "").partition(".")[0]
    if name not in _EXTRAS:
        return None
    return f"this needs {name}, which is not installed: pip install 'attractor_kernels[{_EXTRAS[name]}]'"


def main() -> None:
    """Runs the command line."""
    try:
        from .bench.commands import app

        app()
    except ModuleNotFoundError as error:
        message = missing_message(error.name)
        if message is None:
            raise
        sys.exit(f"attractor-kernels: {message}")
