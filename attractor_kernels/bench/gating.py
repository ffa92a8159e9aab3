"""From a contender to an entry with a speed: made ready, checked, and only then timed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from .contenders import Contender, Runner, Unavailable
from .gate import check
from .results import Entry, Row
from .timing import Stopwatch, measure


def admit(contender: Contender, problem: Any, which: str, steps: int, row: Row) -> Runner | None:
    """The contender made ready, if it runs here and its results are right; else None, and its entry says why."""
    entry = row.entries[contender.name] = Entry(contender.name, contender.ours)
    try:
        runner = contender.build(problem, which, steps)
    except Unavailable as reason:
        entry.why = str(reason)
        return None
    entry.facts = runner.facts
    if runner.results is None:
        return runner
    start = time.perf_counter()
    returned = runner.call()
    runner.hint = time.perf_counter() - start
    verdict = check(runner.results(returned), problem.expected(which), *contender.tolerances)
    entry.error, entry.worst_row = _finite(verdict.error), _finite(verdict.worst_row)
    if not verdict.passed:
        entry.why = f"wrong: {verdict.worst} is {verdict.error:.1e} off, more than {verdict.limit:.0e}"
        return None
    return runner


def time_entries(
    row: Row,
    runners: Mapping[str, Runner | None],
    budget: float,
    min_repeats: int,
    stopwatch: Stopwatch | None = None,
) -> None:
    """Times those who were admitted, and writes it into the row; stopwatch None: by the host's clock."""
    calls = {name: runner.call for name, runner in runners.items() if runner is not None}
    # The first call was timed by the host, which says nothing of a device.
    timed = {name: r.hint for name, r in runners.items() if r is not None and r.hint is not None}
    hints = timed if stopwatch is None else None
    for name, timing in measure(calls, budget, hints=hints, min_repeats=min_repeats, stopwatch=stopwatch).items():
        entry = row.entries[name]
        entry.seconds, entry.low, entry.high = timing.median, timing.low, timing.high
        entry.repeats, entry.calls = timing.repeats, timing.calls


def _finite(value: float | None) -> float | None:
    """JSON has no NaN; `why` says what it was."""
    return value if value is not None and math.isfinite(value) else None
