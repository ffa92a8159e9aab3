"""Triton kernels for CUDA tensors: what they can run. Triton itself is imported by the first solve (launch.py)."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import NamedTuple

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (3, 6)
HISTORY_LIMIT = 6  # a longer history's small system does not fit the registers
STATE_LIMIT = {
    "anderson_step": 100_000_000,  # entries of a mixing group, so that offsets in its rings fit 32 bits
    "solve_affine": 256,
    "solve_mlp": 128,
    "solve_mlp_adjoint": 128,
    "solve_mlp_tangent": 128,
    "solve_gated": 128,
    "solve_gated_adjoint": 128,
    "solve_gated_tangent": 128,
}
HIDDEN_LIMIT = 512


class Sizes(NamedTuple):
    """What decides, besides device and dtype, whether a kernel covers a call."""

    entries: int  # of a state, or of a mixing group where the map is unknown
    hidden: int = 0
    history: int = 0  # 0: Picard


_found: tuple[bool, str] | None = None


def availability() -> tuple[bool, str]:
    """Whether Triton kernels can run here, and why not or on what. Asked once: it wakes the CUDA driver."""
    global _found
    if _found is None:
        _found = _find()
    return _found


# As torch.compiler.assume_constant_result does, which would load the compiler (seconds) for everybody.
availability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _find() -> tuple[bool, str]:
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    version = metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return False, f"triton {version} is older than {'.'.join(map(str, OLDEST))}"
    if torch.version.cuda is None:
        return False, "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return False, "torch finds no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return False, f"the device has compute capability {capability[0]}.{capability[1]}, not 8.0 or later"
    return True, f"triton {version} on {torch.cuda.get_device_name()}"


def obstacle(op: str, device: torch.device, dtype: torch.dtype, sizes: Sizes | None) -> str | None:
    """Why the kernel of `op` cannot take a call; None if it can. sizes None: not asked about."""
    if device.type != "cuda":
        return f"the state is on {device}"
    usable, reason = availability()
    if not usable:
        return reason
    return uncovered(op, dtype, sizes)


def uncovered(op: str, dtype: torch.dtype, sizes: Sizes | None) -> str | None:
    """The part of `obstacle` that does not depend on this machine."""
    if dtype not in DTYPES:
        return f"the state is {dtype}, not float32, bfloat16 or float16"
    if op not in STATE_LIMIT:
        return f"there is no Triton kernel for {op}"
    if sizes is None:
        return None
    limit = STATE_LIMIT[op]
    if not 1 <= sizes.entries <= limit:
        return f"the state has {sizes.entries} entries, not 1 to {limit}"
    if sizes.hidden > HIDDEN_LIMIT or (op.startswith("solve_mlp") and sizes.hidden < 1):
        return f"the hidden layer has {sizes.hidden} units, not 1 to {HIDDEN_LIMIT}"
    if min(sizes.history, sizes.entries) > HISTORY_LIMIT:
        return f"the history is {sizes.history}, not at most {HISTORY_LIMIT}"
    return None
