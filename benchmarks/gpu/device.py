"""What the sections ask of the machine: a clock, graphs, counts and peaks. A dry run answers from the CPU."""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attractor_kernels import backends
from attractor_kernels.backends.plan import H100, DeviceFacts
from attractor_kernels.bench import compiled, counts, graphed
from attractor_kernels.bench.timing import HostClock, Stopwatch

Call = Callable[[], Any]


class Device(ABC):
    """A place to run on.

    Attributes:
        where: of tensors.
        backends: those whose kernels are compared, side by side.
        stopwatch: times calls.
        facts: what a plan depends on.
    """

    where: torch.device
    backends: tuple[str, ...]
    stopwatch: Stopwatch
    facts: DeviceFacts

    @property
    def kernels(self) -> tuple[str, ...]:
        """The backends with kernels of ours."""
        return tuple(name for name in self.backends if name != "reference")

    def runs(self, backend: str) -> str:
        """Whose kernels run what is planned for a backend."""
        return backend

    @abstractmethod
    def synchronize(self) -> None: ...

    @abstractmethod
    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What launches everything that `call` does at once."""

    @abstractmethod
    def compile_step(self, step: Any) -> Any:
        """A map, compiled."""

    @abstractmethod
    def special_functions(self, rounds: int) -> tuple[Call, int]:
        """A call that evaluates nothing but 2^x, and how often."""

    @abstractmethod
    def activity(self, call: Call) -> dict[str, int]:
        """What one call, warmed up, makes the host do: `launches`, `waits` (for the device), and the `kernels` run."""

    @abstractmethod
    def peak_bytes(self, call: Call) -> int:
        """Most memory that a call holds beyond what there was."""

    @abstractmethod
    def sanitize(self, tool: str, module: str, arguments: list[str], environment: dict[str, str]) -> str:
        """What compute-sanitizer's tool prints of a module's main(arguments)."""

    def release(self) -> None:
        """Gives back what a case left; RuntimeError where the device answers no more."""
        self.synchronize()


class EventClock:
    """Time on the device, from caches that hold nothing of the call's. Events are recorded around every call."""

    shortest = 2e-4

    def __init__(self, device: torch.device) -> None:
        # Read, not written: what is left in the cache must not have to be written back during the call.
        entries = torch.cuda.get_device_properties(device).L2_cache_size
        self._filler = torch.zeros(entries, dtype=torch.float32, device=device)  # four times the cache
        self._sink = torch.zeros((), device=device)
        self.overhead = 0.0
        self.overhead = HostClock().sample(lambda: self.sample(lambda: None, 1), 5)

    def sample(self, call: Call, repeats: int) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        torch.cuda.synchronize()
        for start, end in pairs:
            torch.amax(self._filler, dim=0, out=self._sink)
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / repeats / 1e3


class Gpu(Device):
    """The current CUDA device."""

    def __init__(self) -> None:
        self.where = torch.device("cuda", torch.cuda.current_device())
        self.backends = ("cuda", "triton")
        self.stopwatch = EventClock(self.where)
        self.facts = DeviceFacts.of(self.where)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return graphed.cuda_graph(call)

    def compile_step(self, step: Any) -> Any:
        return compiled.compile_step(step)

    def special_functions(self, rounds: int) -> tuple[Call, int]:
        from .special import exponentials

        return exponentials(self.where, rounds)

    def activity(self, call: Call) -> dict[str, int]:
        call()
        found, nothing = (self._profiled(what) for what in (call, lambda: None))
        return {name: count - nothing[name] for name, count in found.items()}

    def _profiled(self, call: Call) -> dict[str, int]:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize()
        return tally(
            (event.name, event.device_type == torch.autograd.DeviceType.CUDA)  # type: ignore[attr-defined]
            for event in profile.events()
        )

    def peak_bytes(self, call: Call) -> int:
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def sanitize(self, tool: str, module: str, arguments: list[str], environment: dict[str, str]) -> str:
        command = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", "--print-limit", "20"]
        # Without torch's cache every tensor is an allocation of its own, whose ends the tool knows.
        environment = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(
            [*command, sys.executable, "-m", module, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def release(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


# As the CUDA runtime and the driver call them.
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch", "cudaMemcpy", "cudaMemset", "cuMemset")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cuStreamSynchronize")


def tally(events: Any) -> dict[str, int]:
    """Counts a profile's events, given as (name, on the device).

    >>> tally([("cudaLaunchKernel", False), ("my_kernel", True), ("cudaStreamSynchronize", False)])
    {'launches': 1, 'waits': 1, 'kernels': 1}
    """
    found = Counter(dict.fromkeys(("launches", "waits", "kernels"), 0))
    for name, on_device in events:
        if on_device:
            found["kernels"] += not name.startswith(("Memcpy", "Memset"))
        elif name.startswith(_WAITS):
            found["waits"] += 1
        elif name.startswith(_LAUNCHES):
            found["launches"] += 1
    return dict(found)


class Dry(Device):
    """The CPU in the GPU's place."""

    def __init__(self) -> None:
        self.where = torch.device("cpu")
        self.backends = ("cpu",) if backends.available()["cpu"] else ("reference",)
        self.stopwatch = HostClock(shortest=1e-5)
        self.facts = replace(H100, name="a CPU in the place of an H100")
        self._printed: dict[str, str] = {}

    def runs(self, backend: str) -> str:
        return self.backends[0]

    def synchronize(self) -> None:
        pass

    def capture(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return call

    def compile_step(self, step: Any) -> Any:
        return step

    def special_functions(self, rounds: int) -> tuple[Call, int]:
        x = torch.full((64,), 0.5)
        return lambda: [torch.exp2(x) for _ in range(rounds)], 64 * rounds

    def activity(self, call: Call) -> dict[str, int]:
        found = counts.count(call)
        return {"launches": found.operations, "waits": found.synchronisations, "kernels": found.operations}

    def peak_bytes(self, call: Call) -> int:
        call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            call()
        held = peak = 0
        for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak

    def sanitize(self, tool: str, module: str, arguments: list[str], environment: dict[str, str]) -> str:
        if module not in self._printed:  # every tool sees the same here
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                importlib.import_module(module).main(arguments)
            self._printed[module] = printed.getvalue()
        return self._printed[module] + "========= ERROR SUMMARY: 0 errors\n"
