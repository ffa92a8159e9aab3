"""The order in which a recording asks the driver and the allocator for things, and how it leaves them after a failure.

Neither is here: what stands in for them notes what was asked.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from attractor_kernels.backends import cuda, cuda_graph
from attractor_kernels.backends.cuda_graph import CudaRecorder

ACTIVE = SimpleNamespace(device=torch.device("cuda", 0))


class Loops:
    """In the place of csrc/ops/cuda_graph.cpp."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.fails = ""

    def __getattr__(self, name: str):
        def call(*arguments):
            self._log.append(name if arguments[-1] is not True else f"{name} body")
            if name == self.fails:
                raise RuntimeError(f"CUDA graph: {name} failed")
            return 7

        return call


@pytest.fixture
def log(monkeypatch) -> list[str]:
    asked: list[str] = []
    current = ["callers"]

    @contextmanager
    def stream(entered):
        outer, current[0] = current[0], entered
        asked.append(f"on {entered}")
        try:
            yield
        finally:
            current[0] = outer

    @contextmanager
    def device(index):
        yield

    class Event:
        def record(self, stream):
            asked.append(f"used on {stream}")

    monkeypatch.setattr(cuda_graph, "_LOOPS", Loops(asked))
    for name, value in {
        "device": device,
        "stream": stream,
        "current_stream": lambda device=None: current[0],
        "Event": Event,
        "ExternalStream": lambda handle, device: f"stream {handle}",
        "graph_pool_handle": lambda: (0, 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "zeros", lambda *sizes, **options: ACTIVE)
    pool = {
        "_cuda_beginAllocateCurrentStreamToPool": lambda index, pool: asked.append(f"pool of {current[0]}"),
        "_cuda_endAllocateToPool": lambda index, pool: asked.append("no pool"),
    }
    for name, value in pool.items():
        monkeypatch.setattr(torch._C, name, value, raising=False)
    return asked


def record(log: list[str], fails: str = "", raises: str = ""):
    cuda_graph._LOOPS.fails = fails

    def work(name: str):
        def run() -> None:
            assert not gc.isenabled()
            log.append(name)
            if name == raises:
                raise KeyboardInterrupt

        return run

    recorder = CudaRecorder()
    with recorder.exclusive(ACTIVE.device):
        log.clear()
        return recorder.record(ACTIVE, (), work("set back"), work("step"))


OPENED = ["make", "on stream 7", "pool of stream 7"]
PROLOGUE = ["begin", "set back", "end"]
BODY = ["begin body", "step", "end body"]


def test_a_recording(log):
    recording = record(log)
    assert log == [*OPENED, *PROLOGUE, *BODY, "no pool", "finish", "used on callers"]
    assert gc.isenabled()
    log.clear()
    recording.launch()
    recording.launch()
    del recording
    assert log == ["launch", "launch", "destroy"]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ({"raises": "set back"}, ["begin", "set back", "abandon", "no pool"]),
        ({"raises": "step"}, [*PROLOGUE, "begin body", "step", "abandon", "no pool"]),
        ({"fails": "begin"}, ["begin", "no pool"]),
        ({"fails": "end"}, [*PROLOGUE, "abandon", "no pool"]),
        ({"fails": "finish"}, [*PROLOGUE, *BODY, "no pool", "finish"]),
    ],
    ids=str,
)
def test_a_failure_leaves_nothing_open(log, failure, expected):
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        record(log, **failure)
    assert gc.isenabled()
    gc.collect()
    assert sorted(log) == sorted([*OPENED, *expected, "used on callers", "destroy"])
    assert [entry for entry in log if entry not in ("used on callers", "destroy")] == [*OPENED, *expected]


def test_a_stream_waits_for_the_last_one(log, monkeypatch):
    class Stream(str):
        def wait_event(self, event):
            log.append(f"{self} waits")

    recorder = CudaRecorder()
    for name in ("a", "a", "b", "a"):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None, name=name: Stream(name))
        with recorder.exclusive(ACTIVE.device):
            log.append(f"{name} works")
    assert log[1:] == [
        *["a works", "used on a"] * 2,
        *["b waits", "b works", "used on b"],
        *["a waits", "a works", "used on a"],
    ]


def test_tensors_are_kept_for_every_stream_that_used_them(log, monkeypatch):
    recording = record(log)
    held = SimpleNamespace(record_stream=lambda stream: log.append(f"held for {stream}"))
    recording._held = (held,)
    log.clear()
    for name in ("callers", "other", "other", "callers"):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None, name=name: name)
        recording.launch()
    assert log == ["launch", "held for other", "launch", "launch", "launch"]


def test_says_why_it_cannot_record():
    reason = CudaRecorder().obstacle(torch.device("cuda", 0))
    assert reason == cuda.library_obstacle()
    if torch.version.cuda is None:
        assert reason is not None and "without CUDA" in reason


@pytest.mark.skipif(cuda.library_obstacle() is not None, reason="the CUDA library is not loaded")
def test_what_it_asks_of_torch_is_there():
    for name in ("own_stream", "make", "begin", "end", "abandon", "finish", "launch", "destroy"):
        assert torch._C._dispatch_has_kernel(f"attractor_kernels_loop::{name}")
    assert hasattr(torch._C, "_cuda_beginAllocateCurrentStreamToPool") and hasattr(torch._C, "_cuda_endAllocateToPool")
    with pytest.raises(RuntimeError, match="no such loop"):
        torch.ops.attractor_kernels_loop.destroy(0)
