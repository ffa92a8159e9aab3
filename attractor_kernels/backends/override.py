"""Plans chosen by hand, for measurements and for whoever knows better than the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch

from ..options import check_choice, check_int
from . import cuda

_STEP = "anderson_step"
# Of the CUDA kernels, in the order of SolveOperator (csrc/cuda/plan_choices.h).
CUDA_OPERATORS = (
    "solve_affine",
    "solve_mlp",
    "solve_mlp_adjoint",
    "solve_mlp_tangent",
    "solve_gated",
    "solve_gated_adjoint",
    "solve_gated_tangent",
)
# What may be chosen, and between which limits.
_LIMITS: dict[str, dict[str, tuple[int, int | None]]] = {
    "triton": {
        "rows": (16, 64),
        "warps": (1, 16),
        "stages": (1, 8),
        "registers": (32, 255),
        "programs": (1, None),
        "mixed": (0, 1),
    },
    "cuda": {"rows": (8, 32), "blocks": (1, 1 << 20), "mixed": (0, 1), "crew": (0, 1), "wgmma": (0, 1)},
}
BACKENDS = tuple(_LIMITS)
CHANGES_BITS = ("mixed", "wgmma")  # whatever the size of the tile
_OF_STEP: dict[str, tuple[str, ...]] = {"triton": ("warps", "registers"), "cuda": ()}
_POWERS = ("rows", "warps")

_told: dict[tuple[str, str], dict[str, int]] = {}


class use_plan:
    """Launches an operator's kernel as told, not as the cost model has it: from now on, or in a `with` block.

    Args:
        operator: "solve_affine", "solve_mlp", "solve_gated", those with "_adjoint" or "_tangent", or "anderson_step".
        backend: whose kernel, "triton" or "cuda".
        choices: for "triton" any of rows (of a tile: 16, 32 or 64), warps (1, 2, 4, 8 or 16), stages (slices in
            flight), registers (of a thread), programs and mixed (products of changes, where precision="mixed" permits
            them and the kernel has them); of `anderson_step` warps and registers. For "cuda" any of rows (of a tile: 8
            or 32, in float64 16), blocks (in flight), mixed, wgmma (products of changes by warpgroups, on compute
            capability 9.0 where the weights fit in a block's shared memory) and crew (weights split over blocks;
            `solve_affine` in full precision where its weights fit); none of `anderson_step`. None of them: the model's
            choices. Bits may differ from those under the model's choices; of "cuda" only by `mixed` and `wgmma`. With
            any of them, `use_plan_table` is not asked.

    Raises:
        TypeError, ValueError: a name is unknown, or a value is not as above. A tile that a device, dtype or shape has
            not is an error of the solve, or of `attractor-kernels info --plan`.
    >>> with use_plan("solve_affine", rows=32, warps=8):
    ...     told("solve_affine", "triton")
    {'rows': 32, 'warps': 8}
    """

    def __init__(self, operator: str, *, backend: str = "triton", **choices: int) -> None:
        if operator != _STEP and operator not in CUDA_OPERATORS:
            raise ValueError(f"use_plan(operator) must be {_STEP!r} or an operator that solves, got {operator!r}")
        check_choice("use_plan(backend)", backend, BACKENDS)
        checked = check_choices(
            operator, backend, choices, f"use_plan({operator!r}, backend={backend!r})", "use_plan({}=...)"
        )
        self._operator, self._backend, self._previous = operator, backend, told(operator, backend)
        _set(operator, backend, checked)

    def __enter__(self) -> use_plan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _set(self._operator, self._backend, self._previous)


def check_choices(operator: str, backend: str, choices: Mapping[str, Any], taker: str, argument: str) -> dict[str, int]:
    """The choices as ints, or an error that names what does not take one (`taker`) or which is wrong (`argument`)."""
    known = choosable(operator, backend)
    for name, value in choices.items():
        if name not in known:
            raise TypeError(f"{taker} takes {', '.join(known) or 'nothing'}, got {name!r}")
        low, high = _LIMITS[backend][name]
        where = argument.format(name)
        check_int(where, int(value) if isinstance(value, bool) else value, low=low, high=high)
        if name in _POWERS and value & (value - 1):
            raise ValueError(f"{where} must be a power of two, got {value}")
    return {name: int(value) for name, value in choices.items()}


def choosable(operator: str, backend: str) -> tuple[str, ...]:
    """Names of what may be chosen for an operator's kernel."""
    return _OF_STEP[backend] if operator == _STEP else tuple(_LIMITS[backend])


def told(operator: str, backend: str) -> dict[str, int]:
    """What was chosen by hand for an operator's kernel."""
    return _told.get((operator, backend), {})


def cuda_choices(choices: Mapping[str, int]) -> tuple[int, int, int, int, int]:
    """As csrc/cuda/plan_choices.h has them: rows, blocks, mixed, crew, wgmma."""
    mixed, crew, wgmma = (choices.get(name, -1) for name in ("mixed", "crew", "wgmma"))
    return choices.get("rows", 0), choices.get("blocks", 0), mixed, crew, wgmma


def _set(operator: str, backend: str, choices: dict[str, int]) -> None:
    if choices:
        _told[operator, backend] = dict(choices)
    else:
        _told.pop((operator, backend), None)
    # The kernels plan for themselves, in the library, where there is one.
    if backend == "cuda" and operator != _STEP and cuda.library_obstacle() is None:
        torch.ops.attractor_kernels_plans.choose(CUDA_OPERATORS.index(operator), *cuda_choices(choices))
