"""A recorder on the CPU: what a CUDA graph with a WHILE node does, in a form one can step through.

Recording runs the given functions once and writes down every operation and the very tensors it read and wrote; their
Python is never run again. A launch performs the operations again on the same memory: the prologue's once, then the
body's until the count is 0. As on a device, recording leaves no results (they are overwritten with NaN), and refuses
operations that need the host or the random number generator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST_ROUNDS = 10_000


def tensors_of(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Tape(TorchDispatchMode):
    """The operations of one part, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor | None]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func} draws random numbers, which a recording cannot")
        if torch.Tag.data_dependent_output in func.tags:
            raise RuntimeError(f"{func} reads back what a recording has not computed")
        out = func(*args, **kwargs)
        given = {memory(t) for t in tensors_of((args, kwargs))}
        # Results with memory of their own; views and what is written in place need nothing.
        own = [t if memory(t) not in given else None for t in tensors_of(out)]
        self._calls.append((func, args, kwargs, own))
        return out

    def poison(self) -> None:
        with torch.no_grad():
            for *_, own in self._calls:
                for tensor in own:
                    if tensor is not None and tensor.is_floating_point():
                        tensor.fill_(torch.nan)

    def play(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, own in self._calls:
                for old, new in zip(own, tensors_of(func(*args, **kwargs)), strict=True):
                    if old is not None:
                        old.copy_(new)


class TapeRecording:
    def __init__(self, active: Tensor, prologue: Tape, body: Tape) -> None:
        self._active, self._prologue, self._body = active, prologue, body
        self.rounds: list[int] = []  # of the body, in each launch

    def launch(self) -> None:
        self._prologue.play()
        rounds = 0
        while rounds == 0 or int(self._active):
            self._body.play()
            rounds += 1
            assert rounds < MOST_ROUNDS
        self.rounds.append(rounds)


class TapeRecorder:
    device_type = "cpu"

    def __init__(self) -> None:
        self.recordings: list[TapeRecording] = []
        self.absent: str | None = None
        self.others_record = False
        self._inside = 0
        self._recording = False

    def obstacle(self, device: torch.device) -> str | None:
        return self.absent

    def capturing(self) -> bool:
        return self.others_record or self._recording

    def random_state(self, device: torch.device) -> Tensor:
        return torch.get_rng_state()

    @contextmanager
    def exclusive(self, device: torch.device):
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def record(
        self, active: Tensor, held: tuple[Tensor, ...], prologue: Callable[[], None], body: Callable[[], None]
    ) -> TapeRecording:
        assert self._inside == 1
        tapes = Tape(), Tape()
        self._recording = True
        try:
            for tape, work in zip(tapes, (prologue, body), strict=True):
                with tape:
                    work()
        finally:
            self._recording = False
        for tape in tapes:
            tape.poison()
        for tensor in held:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        recording = TapeRecording(active, *tapes)
        self.recordings.append(recording)
        return recording
