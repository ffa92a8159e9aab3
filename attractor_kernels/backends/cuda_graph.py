"""Recording a stream's work as one CUDA graph with a loop in it: the device's side of solve/graph_loop.py."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from . import cuda

_LOOPS = torch.ops.attractor_kernels_loop  # csrc/ops/cuda_graph.cpp


class Recording(Protocol):
    def launch(self) -> None:
        """Does what was recorded: the prologue once, then the body until the count is 0, at least once."""


class Recorder(Protocol):
    """What solve/graph_loop.py asks of a device; tests/solve/tape.py is another, on a CPU."""

    device_type: str

    def obstacle(self, device: torch.device) -> str | None:
        """Why nothing can be recorded on this device; None if it can."""

    def capturing(self) -> bool:
        """Whether somebody else is recording what this thread does."""

    def random_state(self, device: torch.device) -> Tensor:
        """Of the device's default generator."""

    def exclusive(self, device: torch.device) -> Any:
        """A context in which nobody else uses this device's recordings, on any stream."""

    def record(
        self, active: Tensor, held: tuple[Tensor, ...], prologue: Callable[[], None], body: Callable[[], None]
    ) -> Recording:
        """Records what prologue and body do, calling each once, inside `exclusive`.

        active: int64 [1], the count, which the body writes. held: tensors the recording uses and the caller keeps.
        Raises what they raise, and RuntimeError where what they do cannot be recorded.
        """


class CudaRecorder:
    device_type = "cuda"

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}
        # The pool and the stream of a device are shared by all of its recordings; a backward pass has its own thread.
        self._lock = threading.RLock()

    def obstacle(self, device: torch.device) -> str | None:
        if (reason := cuda.library_obstacle()) is not None:
            return reason
        if not torch._C._dispatch_has_kernel("attractor_kernels_loop::launch"):
            return "the CUDA library was built without graphs"
        return None

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def random_state(self, device: torch.device) -> Tensor:
        return torch.cuda.get_rng_state(device)

    @contextmanager
    def exclusive(self, device: torch.device) -> Iterator[None]:
        with self._lock, torch.cuda.device(device):
            place = self._place(device)
            stream = torch.cuda.current_stream()
            if place.last_stream is not None and place.last_stream != stream:
                stream.wait_event(place.last_use)
            try:
                yield
            finally:
                place.last_use.record(stream)
                place.last_stream = stream

    def record(
        self, active: Tensor, held: tuple[Tensor, ...], prologue: Callable[[], None], body: Callable[[], None]
    ) -> Recording:
        recording = _CudaRecording(active, (active, *held))
        with self._place(active.device).recording():
            for work, repeated in ((prologue, False), (body, True)):
                _LOOPS.begin(recording.loop, active, repeated)
                try:
                    work()
                    _LOOPS.end(recording.loop, active, repeated)
                except BaseException:
                    _LOOPS.abandon(active)
                    raise
        _LOOPS.finish(recording.loop, active)
        return recording

    def _place(self, device: torch.device) -> _Place:
        index = torch.cuda.current_device() if device.index is None else device.index
        place = self._places.get(index)
        if place is None:
            place = self._places[index] = _Place(index)
        return place


class _CudaRecording:
    def __init__(self, active: Tensor, held: tuple[Tensor, ...]) -> None:
        self.loop: int = _LOOPS.make(active)
        self._active, self._held = active, held
        self._streams = {torch.cuda.current_stream(active.device)}
        # Not at exit, when the driver may be gone before us.
        weakref.finalize(self, _LOOPS.destroy, self.loop).atexit = False

    def launch(self) -> None:
        stream = torch.cuda.current_stream(self._active.device)
        if stream not in self._streams:
            self._streams.add(stream)
            for tensor in self._held:
                tensor.record_stream(stream)
        _LOOPS.launch(self.loop, self._active)


class _Place:
    """What recordings of one device share.

    The stream is nobody else's and the pool is never given back: a workspace that cuBLAS keeps for this stream lies in
    the pool, and stays valid memory even when torch drops all workspaces. Recordings never run at the same time and
    leave nothing in the pool that the next launch needs, so they share its memory.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        with torch.cuda.device(index):
            any_count = torch.zeros(1, dtype=torch.int64, device="cuda")
            self._stream = torch.cuda.ExternalStream(_LOOPS.own_stream(any_count), device=index)
            self.last_use = torch.cuda.Event()
        self._pool = torch.cuda.graph_pool_handle()
        self.last_stream: torch.cuda.Stream | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """All this thread does goes to the stream, and what is allocated on the stream comes from the pool."""
        # The collector could free what belongs to other graphs, which may not happen in a capture.
        collects = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.device(self._index), torch.cuda.stream(self._stream):
                # By stream, not by thread: a backward pass that the map makes has another thread.
                torch._C._cuda_beginAllocateCurrentStreamToPool(self._index, self._pool)
                try:
                    yield
                finally:
                    torch._C._cuda_endAllocateToPool(self._index, self._pool)
        finally:
            if collects:
                gc.enable()
