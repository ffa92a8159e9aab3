"""Reading how many problems still run, after each step of a loop that the host drives."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def reader(count: Tensor) -> Callable[[], int]:
    """A function to call after every step: 0 once `count`, one int64, is known to be 0."""
    if type(count) is not Tensor:
        return count.item  # type: ignore[return-value]
    if count.device.type == "cuda":
        host = torch.empty(1, dtype=torch.int64, device="cpu", pin_memory=True)
        return LaggingReader(count, host, _StreamEvent(count.device))
    if count.device.type != "cpu":
        return count.item  # type: ignore[return-value]
    value = ctypes.c_int64.from_address(count.data_ptr())
    return lambda: value.value


class _StreamEvent:
    """An event of the stream that is current on a device, which need not be the current device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event()

    def record(self) -> None:
        self._event.record(torch.cuda.current_stream(self._device))

    def synchronize(self) -> None:
        self._event.synchronize()


class LaggingReader:
    """Reads a count on a device without letting the device run dry.

    After every second step a copy of the count is enqueued; it is waited for after the step that follows, when the
    device has that step to do. So the loop makes one or two steps more than it needs, which change nothing: problems
    that have ended stand still. Copying after every step would save half a step on average, for twice the copies.
    """

    EVERY = 2
    MOST_EXTRA_STEPS = EVERY

    def __init__(self, count: Tensor, host: Tensor, event: Event) -> None:
        self._count = count
        self._host = host
        self._event = event
        self._steps = 0
        self._asked = False

    def __call__(self) -> int:
        self._steps += 1
        if self._asked:
            self._asked = False
            self._event.synchronize()
            if not int(self._host):
                return 0
        if self._steps % self.EVERY == 0:
            self._asked = True
            self._host.copy_(self._count, non_blocking=True)
            self._event.record()
        return 1
