"""The host's reading of a count that a device writes: late, seldom, and never before it is there."""

from __future__ import annotations

import pytest
import torch

import attractor_kernels as ak
from attractor_kernels.solve import stop_flag
from attractor_kernels.solve.stop_flag import LaggingReader


class Arrival:
    """Pinned memory and the event behind it: a value may be read once it was waited for."""

    def __init__(self) -> None:
        self.sent: int | None = None
        self.value: int | None = None
        self.recorded = self.waits = 0

    def copy_(self, count: torch.Tensor, non_blocking: bool) -> None:
        assert non_blocking
        self.sent, self.value = int(count), None

    def record(self) -> None:
        assert self.sent is not None
        self.recorded += 1

    def synchronize(self) -> None:
        assert self.sent is not None, "nothing to wait for"
        self.value, self.sent = self.sent, None
        self.waits += 1

    def __int__(self) -> int:
        assert self.value is not None, "read before it was there"
        return self.value


@pytest.mark.parametrize("ends", range(1, 12))
def test_stops_one_or_two_steps_late(ends):
    count, arrival = torch.ones(1, dtype=torch.int64), Arrival()
    running = LaggingReader(count, arrival, arrival)
    steps = 0
    while True:
        steps += 1
        if steps == ends:
            count.zero_()
        if not running():
            break
        assert steps < 100
    assert ends < steps <= ends + LaggingReader.MOST_EXTRA_STEPS
    # A step is always on its way when the host waits.
    assert arrival.waits == arrival.recorded == steps // 2


def test_a_count_on_the_host_is_read_at_once():
    count = torch.tensor([2])
    read = stop_flag.reader(count)
    assert read() == 2
    count.zero_()
    assert read() == 0


@pytest.mark.skipif(not ak.backends.available()["cpu"], reason="needs the compiled kernels")
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto()], ids=str)
@pytest.mark.parametrize("options", [{}, {"keep": "best", "trace": True}, {"rtol": 0.0, "max_steps": 9}], ids=str)
def test_steps_too_many_change_nothing(monkeypatch, solver, options):
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(5, 5, generator=generator, dtype=torch.float64) / 5
    u = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        return torch.tanh(z @ w + u)

    options = {"solver": solver, "rtol": 1e-7, "max_steps": 60, "backend": "cpu", **options}
    with torch.no_grad():
        expected, wanted = ak.fixed_point(f, torch.zeros_like(u), **options)
        needed, calls = calls, 0
        monkeypatch.setattr(stop_flag, "reader", lambda count: LaggingReader(count, *[Arrival()] * 2))
        z, info = ak.fixed_point(f, torch.zeros_like(u), **options)
    assert torch.equal(z, expected)
    for name in ("steps", "residual", "status"):
        assert torch.equal(getattr(info, name), getattr(wanted, name))
    if wanted.trace is not None:
        torch.testing.assert_close(info.trace, wanted.trace, rtol=0, atol=0, equal_nan=True)
    most = min(needed + LaggingReader.MOST_EXTRA_STEPS, options["max_steps"])
    assert needed < calls <= most or calls == needed == options["max_steps"]
