"""The compiled CPU kernels: finding and loading the library, and what it can run."""

from __future__ import annotations

from pathlib import Path

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_LIBRARY = Path(__file__).resolve().parent.parent / "_cpu.so"


def _load() -> str | None:
    """Loads the library; returns why that is not possible."""
    if not _LIBRARY.exists():
        return f"the compiled library is missing ({_LIBRARY.name} beside the package)"
    try:
        torch.ops.load_library(str(_LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"{_LIBRARY.name} does not load: {error}"
    return None


_obstacle: str | None = _load()
_operators: dict[str, bool] = {}


def availability() -> tuple[bool, str]:
    return (True, f"compiled kernels in {_LIBRARY.name}") if _obstacle is None else (False, _obstacle)


def obstacle(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernel of `op` cannot take a state of this device and dtype; None if it can."""
    if _obstacle is not None:
        return _obstacle
    if device.type != "cpu":
        return f"the state is on {device}"
    if dtype not in DTYPES:
        return f"the state is {dtype}, not float32, float64, bfloat16 or float16"
    return None if _operators[op] else f"the library has no kernel for {op}"


def find_kernel(op: str) -> None:
    """Notes whether a declared operator has a compiled kernel: asked once, because a compiled graph cannot ask."""
    _operators[op] = torch._C._dispatch_has_kernel_for_dispatch_key(f"attractor_kernels::{op}", "CPU")
