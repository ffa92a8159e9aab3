"""The compiled CUDA kernels: what they can run.

The library is loaded only where torch has CUDA; elsewhere its import costs nothing.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch

from .library import Library

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_library = Library("_cuda.so", "CUDA")
find_kernel = _library.find_kernel


def _build() -> Any:
    """What was built: `nvcc`, `architectures`, and `absent`, the reason where nothing was."""
    try:
        return importlib.import_module("attractor_kernels._facts").build()["cuda"]
    except ImportError:
        return {"nvcc": "", "architectures": "", "absent": "the compiled part of the package is missing"}


if torch.version.cuda is None:
    _library.obstacle = "this torch is built without CUDA"
    if not _library.path.exists():
        _library.obstacle += "; nor has this build CUDA kernels"
elif not _library.path.exists():
    _library.obstacle = f"this build has no CUDA kernels: {_build()['absent'] or f'{_library.name} is missing'}"
else:
    _library.load()


def availability() -> tuple[bool, str]:
    if _library.obstacle is not None:
        return False, _library.obstacle
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    reason = _unfit(torch.device("cuda", torch.cuda.current_device()))
    return (True, f"compiled kernels in {_library.name}") if reason is None else (False, reason)


def library_obstacle() -> str | None:
    """Why the library is not loaded; None if it is."""
    return _library.obstacle


def obstacle(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the compiled kernel of `op` cannot take a state of this device and dtype; None if it can."""
    if _library.obstacle is not None:
        return _library.obstacle
    if device.type != "cuda":
        return f"the state is on {device}"
    if (lack := _library.lacks(op)) is not None:
        return lack
    if dtype not in DTYPES:
        return f"the state is {dtype}, not one of {', '.join(str(one).removeprefix('torch.') for one in DTYPES)}"
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
