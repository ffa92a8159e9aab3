"""Interleaved timing: A B C A B C ..., so that a slow minute of the machine hits all of them alike."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

Call = Callable[[], Any]

MIN_REPEATS = 5
MAX_REPEATS = 101
SLOW_REPEATS = 3
# A sample lasts at least this long: shorter calls are repeated within it.
SAMPLE_SECONDS = 1e-3


@dataclass(frozen=True)
class Timing:
    """Seconds per call, over `repeats` samples of `calls` calls each."""

    median: float
    low: float  # first and third quartile
    high: float
    repeats: int
    calls: int


class Stopwatch(Protocol):
    """What measures a call: the host's clock, or events of a device that runs behind the host.

    Attributes:
        shortest: a sample lasts at least this long; shorter calls are repeated within it.
        overhead: seconds spent around every call that are not part of its time.
    """

    shortest: float
    overhead: float

    def sample(self, call: Call, repeats: int) -> float:
        """Seconds per call."""
        ...


@dataclass
class HostClock:
    """The time that passes on the host."""

    clock: Callable[[], float] = time.perf_counter
    shortest: float = SAMPLE_SECONDS
    overhead: float = 0.0

    def sample(self, call: Call, repeats: int) -> float:
        start = self.clock()
        for _ in range(repeats):
            call()
        return (self.clock() - start) / repeats


def measure(
    calls: Mapping[str, Call],
    budget: float,
    *,
    hints: Mapping[str, float] | None = None,
    min_repeats: int = MIN_REPEATS,
    max_repeats: int = MAX_REPEATS,
    clock: Callable[[], float] = time.perf_counter,
    stopwatch: Stopwatch | None = None,
) -> dict[str, Timing]:
    """Times callables against each other.

    Each gets an equal share of the budget (seconds) and as many samples as fit into it, at least `min_repeats` and at
    most `max_repeats`; one whose single call exceeds its share gets SLOW_REPEATS. Whoever has fewer samples than
    others sits out rounds evenly, so that all of them cover the same stretch of time. Every round has an order of its
    own, always the same ones: what a call leaves behind, in the caches or in threads that still spin, is not always
    the same other's to bear.

    hints: seconds an earlier call took, by name. That call counts as the warm-up; a long one is taken at its word.
    stopwatch: None: the host's `clock`.
    """
    watch = HostClock(clock) if stopwatch is None else stopwatch
    inner, once = {}, {}
    for name, call in calls.items():
        once[name], inner[name] = _calibrate(call, watch, (hints or {}).get(name))
    share = budget / max(len(calls), 1)
    quota = {}
    for name in calls:
        fitting = int(share / ((once[name] + watch.overhead) * inner[name]))
        quota[name] = min(max(fitting, min_repeats if fitting else min(SLOW_REPEATS, min_repeats)), max_repeats)
    rounds = max(quota.values(), default=0)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    shuffled, order = random.Random(0), list(calls)
    with _no_collection():
        for turn in range(rounds):
            shuffled.shuffle(order)
            for name in order:
                if (turn + 1) * quota[name] // rounds > turn * quota[name] // rounds:
                    samples[name].append(watch.sample(calls[name], inner[name]))
    return {name: _summary(samples[name], inner[name]) for name in calls}


def _calibrate(call: Call, watch: Stopwatch, hint: float | None) -> tuple[float, int]:
    """Seconds of a warm call, and how many of them make a sample."""
    if hint is not None and hint > 100 * watch.shortest:
        return hint, 1
    if hint is None:
        call()
    seconds = watch.sample(call, 1)
    if seconds < 20 * watch.shortest:
        # The first estimate of something short is mostly noise; an interruption only ever lengthens one.
        seconds = min(seconds, *(watch.sample(call, 5) for _ in range(3)))
    seconds = max(seconds, 1e-9)
    return seconds, max(1, -int(-watch.shortest // seconds))


def _summary(samples: list[float], calls: int) -> Timing:
    if len(samples) < 2:
        only = samples[0]
        return Timing(only, only, only, 1, calls)
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(statistics.median(samples), low, high, len(samples), calls)


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
