"""Runs sections one after the other, each in a process that is watched: who hangs is ended, who dies is started again
behind the case that it died of."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .context import ROOT, Context
from .sections import Section
from .state import FAILED, SKIPPED, State
from .worker import run_section

RESTARTS = 3
_LAST_LINES = 3  # of a log, to say what a process died of


@dataclass
class Deadline:
    """Seconds that are left of the whole command."""

    seconds: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds

    @property
    def left(self) -> float:
        return self._end - self.clock()


def run_here(section: Section, context: Context) -> State:
    """In this process, for a dry run."""
    State(section.name).write(context.out)
    run_section(section, context)
    return _read(context, section)


def run_watched(
    section: Section,
    context: Context,
    deadline: Deadline,
    doing: Callable[[str], None] = lambda what: None,
    command: Sequence[str] | None = None,
) -> State:
    """In processes of its own. command: what runs the section's cases, for tests."""
    if deadline.left < 1:
        state = State(section.name, SKIPPED, "the time was up")
        state.write(context.out)
        return state
    State(section.name).write(context.out)
    until = min(section.limit, deadline.left) + time.monotonic()
    log = context.out / "logs" / f"{section.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    for _ in range(1 + RESTARTS):
        reason = _watch(command or _command(section, context), context, section, log, until, doing)
        state = _read(context, section)
        if reason is None:
            return state
        if state.current is None and not reason.startswith("broken"):
            break  # it died outside its cases
        if state.current is not None:
            state.failed[state.current] = reason
            state.current = None
            state.write(context.out)
        if time.monotonic() >= until:
            break
    state.status, state.reason = FAILED, reason
    state.write(context.out)
    return state


def _command(section: Section, context: Context) -> list[str]:
    options = ["--dry"] if context.dry else []
    options += ["--wheel", str(context.wheel)] if context.wheel else []
    options += ["--in-place"] if context.in_place else []
    return context.python("-m", f"{__package__}.worker", section.name, "--out", str(context.out), *options)


def _watch(
    command: Sequence[str],
    context: Context,
    section: Section,
    log: Path,
    until: float,
    doing: Callable[[str], None],
) -> str | None:
    """Runs a command to its end or the end of its time; None, or why it has to be started again."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=context.environment(), stdout=file, stderr=file, start_new_session=True
        )
    current, since = None, time.monotonic()
    try:
        while process.poll() is None:
            now = time.monotonic()
            state = _read(context, section)
            if state.current != current:
                current, since = state.current, now
                if current is not None:
                    doing(current)
            if now > until:
                return "ended: the section's time was up"
            if now - since > section.case_limit:
                return f"ended after {section.case_limit:.0f} s without an end"
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode == 0:
        return None
    if process.returncode == 3:
        return "broken: the device answered no more"
    how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
    tail = " / ".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
    return f"died with {how}: {tail}"[:500]


def _read(context: Context, section: Section) -> State:
    state = State.read(context.out, section.name)
    assert state is not None  # written before anything is started
    return state
