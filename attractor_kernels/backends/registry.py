"""Which backends there are, whether each can run here, and which one is preferred.

The preference set by `use_backend`, and what `use_plan` (override.py) and `use_plan_table` (plan_table.py) say, are the
only global state of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import torch

from ..options import check_choice
from . import cpu, cuda, triton

BACKENDS = ("auto", "cuda", "triton", "cpu", "reference")

# Operators of the compiled backends live in the first namespace, with plain torch behind every device they do not
# cover; the second holds the same operators with nothing but plain torch, the third with Triton kernels on CUDA.
NAMESPACE = "attractor_kernels"
REFERENCE_NAMESPACE = "attractor_kernels_reference"
TRITON_NAMESPACE = "attractor_kernels_triton"


class Availability(NamedTuple):
    """Whether a backend can run here; `reason` says why not, or what it runs on."""

    usable: bool
    reason: str

    def __bool__(self) -> bool:
        return self.usable


_preferred = "auto"


class use_backend:
    """Prefers a backend wherever `backend="auto"` is asked for: from now on, or inside a `with` block.

    Args:
        name: "auto", "cuda", "triton", "cpu" or "reference".

    Raises:
        ValueError: the name is unknown, or that backend cannot run here.

    >>> import attractor_kernels as ak
    >>> with ak.use_backend("reference"):
    ...     z, info = ak.fixed_point(lambda z: 0.5 * z + 1, torch.zeros(3, 2))
    >>> info.backend
    'reference'
    """

    def __init__(self, name: str) -> None:
        global _preferred
        check_choice("use_backend(name)", name, BACKENDS)
        require_usable("use_backend(name)", name)
        self._previous = _preferred
        _preferred = name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _preferred
        _preferred = self._previous


def preferred() -> str:
    return _preferred


def available() -> dict[str, Availability]:
    """Per backend, whether it can run here and why not.

    >>> available()["reference"].usable
    True
    """
    return {
        "cuda": Availability(*cuda.availability()),
        "triton": Availability(*triton.availability()),
        "cpu": Availability(*cpu.availability()),
        "reference": Availability(True, "plain torch on any device"),
    }


def require_usable(name: str, backend: str) -> None:
    if backend == "auto":
        return
    usable, reason = available()[backend]
    if not usable:
        raise ValueError(f"{name} {backend!r} cannot run here: {reason}")


def backend_for(
    op: str, asked: str, device: torch.device, dtype: torch.dtype, sizes: triton.Sizes | None = None
) -> str:
    """The backend that runs operator `op` on a state of this device and dtype; sizes: of a CUDA state.

    Raises ValueError where a backend asked for by name cannot.
    """
    key = (op, asked, _preferred, device, dtype, sizes)
    name = _chosen.get(key)
    if name is None:
        name = _chosen[key] = _choose(op, _preferred if asked == "auto" else asked, device, dtype, sizes)
    return name


# Answers of backend_for, which do not change: a library is loaded once, at import.
_chosen: dict[tuple[str, str, str, torch.device, torch.dtype, triton.Sizes | None], str] = {}


# Why a backend cannot run an operator on such a state, None if it can; the first that can is preferred.
_OBSTACLES: dict[str, Callable[[str, torch.device, torch.dtype, triton.Sizes | None], str | None]] = {
    "cuda": lambda op, device, dtype, sizes: cuda.obstacle(op, device, dtype),
    "triton": lambda op, device, dtype, sizes: triton.obstacle(op, device, dtype, sizes),
    "cpu": lambda op, device, dtype, sizes: cpu.obstacle(op, device, dtype),
}
_PREFERENCE = tuple(_OBSTACLES)


def _choose(op: str, name: str, device: torch.device, dtype: torch.dtype, sizes: triton.Sizes | None) -> str:
    if name == "reference":
        return name
    if name != "auto":
        require_usable("backend", name)
    obstacle = None
    for backend in _PREFERENCE if name == "auto" else (name,):
        obstacle = _OBSTACLES[backend](op, device, dtype, sizes)
        if obstacle is None:
            return backend
    if name == "auto":
        return "reference"
    raise ValueError(f"backend {name!r} cannot run {op}: {obstacle}")
