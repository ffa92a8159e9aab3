"""The command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .context import Context
from .sections import chosen
from .state import State
from .supervisor import Deadline, run_here, run_watched


def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the results: a file a section, and gpu.json.")],
    start: Annotated[str | None, typer.Option("--from", help="Begin at this section; keep earlier ones.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="This section alone. Repeat, or use commas.")] = None,
    wheel: Annotated[Path | None, typer.Option(exists=True, help="Prove this wheel instead of building one.")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Build beside the sources instead of a wheel.")] = False,
    dry: Annotated[bool, typer.Option("--dry", help="The same on the CPU, at tiny sizes.")] = False,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which no section goes on.")] = 470.0,
    commit: Annotated[str | None, typer.Option(help="Of the sources, where they have no history with them.")] = None,
) -> None:
    """Build, prove and measure on the GPU of this machine. Exit status 1 where anything is wrong."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 180)
    try:
        sections = chosen([name for value in only or [] for name in value.split(",")], start)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    context = Context(out.resolve(), dry, wheel, in_place)
    deadline, begun = Deadline(limit), time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - begun:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    for section in sections:
        say(f"{section.name}: {section.about}")
        if dry:
            state = run_here(section, context)
        else:
            state = run_watched(section, context, deadline, doing=lambda what: say(f"  {what}"))
        _tell(state, say)

    # Not at the top: a wheel that is being proved must not be imported before it is installed.
    from .report import make_report, read_states, renderables, write

    states = read_states(context)
    report = make_report(states, dry, commit)
    paths = write(context, states, report)
    for part in renderables(states, report):
        console.print(part)
    console.print("written: " + " ".join(str(path) for path in paths), soft_wrap=True)
    if not all(states[section.name].good for section in sections):
        raise typer.Exit(1)


def _tell(state: State, say: Callable[[str], None]) -> None:
    for name, reason in state.failed.items():
        say(f"  failed: {name}: {reason}")
    for problem in state.problems:
        say(f"  wrong: {problem}")
    if state.reason:
        say(f"  {state.status}: {state.reason}")


if __name__ == "__main__":
    typer.run(main)
