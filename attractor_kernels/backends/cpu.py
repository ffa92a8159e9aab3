"""The compiled CPU kernels: what they can run."""

from __future__ import annotations

import torch

from .library import Library

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_library = Library("_cpu.so", "CPU")
if _library.path.exists():
    _library.load()
else:
    _library.obstacle = f"the compiled library is missing ({_library.name} beside the package)"

find_kernel = _library.find_kernel


def availability() -> tuple[bool, str]:
    if _library.obstacle is not None:
        return False, _library.obstacle
    return True, f"compiled kernels in {_library.name}"


def obstacle(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernel of `op` cannot take a state of this device and dtype; None if it can."""
    if _library.obstacle is not None:
        return _library.obstacle
    if device.type != "cpu":
        return f"the state is on {device}"
    if dtype not in DTYPES:
        return f"the state is {dtype}, not float32, float64, bfloat16 or float16"
    return _library.lacks(op)
