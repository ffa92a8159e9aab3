"""The compiled CUDA kernels: finding and loading the library, and what it can run.

The library is loaded only where torch has CUDA; elsewhere its import costs nothing.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch

DTYPES = {
    "anderson_step": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "solve_affine": (torch.float32, torch.bfloat16, torch.float16),
}

_LIBRARY = Path(__file__).resolve().parent.parent / "_cuda.so"


def _build() -> Any:
    """What was built: `nvcc`, `architectures`, and `absent`, the reason where nothing was."""
    try:
        return importlib.import_module("attractor_kernels._facts").build()["cuda"]
    except ImportError:
        return {"nvcc": "", "architectures": "", "absent": "the compiled part of the package is missing"}


def _load() -> str | None:
    """Loads the library; returns why that is not possible."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA" + ("" if _LIBRARY.exists() else "; nor has this build CUDA kernels")
    if not _LIBRARY.exists():
        return f"this build has no CUDA kernels: {_build()['absent'] or f'{_LIBRARY.name} is missing'}"
    try:
        torch.ops.load_library(str(_LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"{_LIBRARY.name} does not load: {error}"
    return None


_obstacle: str | None = _load()
_operators: dict[str, bool] = {}


def availability() -> tuple[bool, str]:
    if _obstacle is not None:
        return False, _obstacle
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    reason = _unfit(torch.device("cuda", torch.cuda.current_device()))
    return (True, f"compiled kernels in {_LIBRARY.name}") if reason is None else (False, reason)


def obstacle(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernel of `op` cannot take a state of this device and dtype; None if it can."""
    if _obstacle is not None:
        return _obstacle
    if device.type != "cuda":
        return f"the state is on {device}"
    if not _operators[op]:
        return f"the library has no kernel for {op}"
    if dtype not in DTYPES[op]:
        return f"the state is {dtype}, not one of {', '.join(str(one).removeprefix('torch.') for one in DTYPES[op])}"
    return _unfit(device)


def _unfit(device: torch.device) -> str | None:
    """Why no code of the library runs on this device."""
    architectures = _build()["architectures"]
    capability = torch.cuda.get_device_capability(device)
    if runs_on(architectures, capability):
        return None
    has = ".".join(map(str, capability))
    return f"{device} has compute capability {has}; the kernels were built for {architectures}"


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architectures` ("8.0 9.0a 10.0+PTX") runs on a device of this compute capability."""
    for major, minor, family, text in re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", architectures):
        built = (int(major), int(minor))
        newer = capability[0] == built[0] and capability >= built
        fits = capability == built if family == "a" else newer
        if fits or (text and not family and capability >= built):
            return True
    return False


def find_kernel(op: str) -> None:
    """Notes whether a declared operator has a compiled kernel: asked once, because a compiled graph cannot ask."""
    _operators[op] = torch._C._dispatch_has_kernel_for_dispatch_key(f"attractor_kernels::{op}", "CUDA")
