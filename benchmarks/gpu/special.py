"""A kernel of 2^x alone: what the special-function units reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

_ENTRIES = 1024  # of a program: 8 chains a thread
_PROGRAMS = 16  # a multiprocessor


@triton.jit
def exponential_chains(out, rounds, ENTRIES: tl.constexpr):
    place = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    x = place * 1e-9
    for _ in range(rounds):
        x = tl.exp2(-x)  # tends to the fixed point 0.64
    tl.store(out + place, x)


def exponentials(device: torch.device, rounds: int) -> tuple[Callable[[], Any], int]:
    """A call, and how many exponentials it evaluates."""
    programs = _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
    out = torch.empty(programs * _ENTRIES, device=device)
    return lambda: exponential_chains[(programs,)](out, rounds, ENTRIES=_ENTRIES, num_warps=4), out.numel() * rounds
