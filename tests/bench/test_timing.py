"""Interleaved timing, on a clock of our own."""

from __future__ import annotations

import itertools

import pytest

from attractor_kernels.bench.timing import measure


class Clock:
    """Time passes only where a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def lasting(self, name: str, seconds: float):
        def call() -> None:
            self.now += seconds
            self.order.append(name)

        return call


def test_medians_are_those_of_the_calls():
    clock = Clock()
    found = measure({"a": clock.lasting("a", 0.01), "b": clock.lasting("b", 0.03)}, 1.0, clock=clock)
    assert found["a"].median == pytest.approx(0.01)
    assert found["b"].median == pytest.approx(0.03)
    assert found["a"].low == pytest.approx(0.01) and found["a"].high == pytest.approx(0.01)


def test_turns_are_taken_in_an_order_that_changes():
    clock = Clock()
    calls = {name: clock.lasting(name, 0.01) for name in "abc"}
    measure(calls, 0.6, min_repeats=20, clock=clock)
    rounds = list(zip(*[iter(clock.order[-60:])] * 3, strict=True))
    assert len(rounds) == 20
    assert all(sorted(turn) == list("abc") for turn in rounds)
    assert {turn[0] for turn in rounds} == {turn[2] for turn in rounds} == set("abc")


def test_the_slow_have_fewer_samples_spread_over_the_run():
    clock = Clock()
    calls = {"fast": clock.lasting("fast", 0.002), "slow": clock.lasting("slow", 0.1)}
    found = measure(calls, 2.0, min_repeats=5, max_repeats=50, clock=clock)
    assert found["fast"].repeats == 50
    assert found["slow"].repeats == 10
    timed = clock.order[-60:]
    gaps = [i for i, name in enumerate(timed) if name == "slow"]
    # Of every five rounds the last, on either side of the other call: from before it to after it are seven places.
    assert max(b - a for a, b in itertools.pairwise(gaps)) <= 7
    assert all(place - i in (5 * i + 4, 5 * i + 5) for i, place in enumerate(gaps))


def test_an_earlier_call_is_the_warm_up():
    clock = Clock()
    measure({"a": clock.lasting("a", 1.0)}, 0.1, hints={"a": 1.0}, clock=clock)
    assert len(clock.order) == 3


def test_no_fewer_than_the_smallest_number_of_repeats():
    clock = Clock()
    calls = {"fits": clock.lasting("fits", 0.04), "does not": clock.lasting("does not", 10.0)}
    found = measure(calls, 0.1, min_repeats=5, clock=clock)
    assert (found["fits"].repeats, found["does not"].repeats) == (5, 3)


def test_short_calls_are_repeated_within_a_sample():
    clock = Clock()
    found = measure({"a": clock.lasting("a", 1e-5)}, 0.1, clock=clock)["a"]
    assert found.calls == pytest.approx(100, abs=1)
    assert found.median == pytest.approx(1e-5)


def test_nothing_to_time():
    assert measure({}, 1.0) == {}
