"""Plans chosen by hand, for measurements and for whoever knows better than the cost model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import TracebackType
from typing import Any

import torch

from ..options import check_choice, check_int
from . import cuda

# Of the CUDA kernels, in the order of SolveOperator and StepOperator (csrc/cuda/plan_choices.h).
CUDA_OPERATORS = (
    "solve_affine",
    "solve_mlp",
    "solve_mlp_adjoint",
    "solve_mlp_tangent",
    "solve_gated",
    "solve_gated_adjoint",
    "solve_gated_tangent",
)
STEP_OPERATORS = ("anderson_step", "residual_norm")
_MANY = 1 << 20
# What may be chosen of a solve, and between which limits.
_OF_SOLVES: dict[str, dict[str, tuple[int, int | None]]] = {
    "triton": {
        "rows": (16, 64),
        "warps": (1, 16),
        "stages": (1, 8),
        "registers": (32, 255),
        "programs": (1, None),
        "mixed": (0, 1),
    },
    "cuda": {"rows": (8, 32), "blocks": (1, _MANY), "mixed": (0, 1), "crew": (0, 1), "wgmma": (0, 1)},
}
# The same of others.
_OF_STEPS: dict[tuple[str, str], dict[str, tuple[int, int | None]]] = {
    ("anderson_step", "triton"): {name: _OF_SOLVES["triton"][name] for name in ("warps", "registers")},
    ("anderson_step", "cuda"): {
        "warp": (0, 1),
        "blocks": (1, _MANY),
        "split": (0, 1),
        "kept": (0, _MANY),
        "solvers": (1, 128),  # threads of a block (csrc/cuda/anderson_step.h)
    },
    ("residual_norm", "cuda"): {"warp": (0, 1), "blocks": (1, _MANY)},
}
BACKENDS = tuple(_OF_SOLVES)
CHANGES_BITS = ("mixed", "wgmma")  # of a solve, whatever the size of the tile
_POWERS = ("rows", "warps")

_told: dict[tuple[str, str], dict[str, int]] = {}


class use_plan:
    """Launches an operator's kernel as told, not as the cost model has it: from now on, or in a `with` block.

    Args:
        operator: "solve_affine", "solve_mlp", "solve_gated", those with "_adjoint" or "_tangent", "anderson_step" or
            "residual_norm".
        backend: whose kernel, "triton" or "cuda".
        choices: for "triton" any of rows (of a tile: 16, 32 or 64), warps (1, 2, 4, 8 or 16), stages (slices in
            flight), registers (of a thread), programs and mixed (products of changes, where precision="mixed" permits
            them and the kernel has them); of `anderson_step` warps and registers. For "cuda" any of rows (of a tile: 8
            or 32, in float64 16), blocks (in flight), mixed, wgmma (products of changes by warpgroups, on compute
            capability 9.0 where the weights fit in a block's shared memory) and crew (weights split over blocks;
            `solve_affine` in full precision where its weights fit); of `anderson_step` warp (a warp takes a problem,
            or a block), blocks, split (blocks share a problem of several chunks or groups), kept (chunks that stay in
            shared memory between the two sweeps, of those that a team takes) and solvers (small systems that a team
            solves at once); of `residual_norm`, which only "cuda" plans, warp and blocks. None of them: the model's
            choices. Bits may differ from those under the model's choices; of "cuda" only by `mixed`, `wgmma` and
            `warp`. With any of them, `use_plan_table` is not asked. A loop recorded in a CUDA graph under other
            choices is not used.

    Raises:
        TypeError, ValueError: a name is unknown, or a value is not as above. What a device, dtype or shape has not (a
            tile, or the shared memory) is an error of the call, or of `attractor-kernels info --plan`.
    >>> with use_plan("solve_affine", rows=32, warps=8):
    ...     told("solve_affine", "triton")
    {'rows': 32, 'warps': 8}
    """

    def __init__(self, operator: str, *, backend: str = "triton", **choices: int) -> None:
        if operator not in (*CUDA_OPERATORS, *STEP_OPERATORS):
            others = ", ".join(map(repr, STEP_OPERATORS))
            raise ValueError(f"use_plan(operator) must be {others} or an operator that solves, got {operator!r}")
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
    limits = _limits(operator, backend)
    for name, value in choices.items():
        if name not in limits:
            raise TypeError(f"{taker} takes {', '.join(limits) or 'nothing'}, got {name!r}")
        low, high = limits[name]
        where = argument.format(name)
        check_int(where, int(value) if isinstance(value, bool) else value, low=low, high=high)
        if name in _POWERS and value & (value - 1):
            raise ValueError(f"{where} must be a power of two, got {value}")
    return {name: int(value) for name, value in choices.items()}


def choosable(operator: str, backend: str) -> tuple[str, ...]:
    """Names of what may be chosen for an operator's kernel."""
    return tuple(_limits(operator, backend))


def _limits(operator: str, backend: str) -> Mapping[str, tuple[int, int | None]]:
    return _OF_STEPS.get((operator, backend), {}) if operator in STEP_OPERATORS else _OF_SOLVES[backend]


def told(operator: str, backend: str) -> dict[str, int]:
    """What was chosen by hand for an operator's kernel."""
    return _told.get((operator, backend), {})


def cuda_choices(choices: Mapping[str, int]) -> tuple[int, int, int, int, int]:
    """As csrc/cuda/plan_choices.h has them: rows, blocks, mixed, crew, wgmma."""
    mixed, crew, wgmma = (choices.get(name, -1) for name in ("mixed", "crew", "wgmma"))
    return choices.get("rows", 0), choices.get("blocks", 0), mixed, crew, wgmma


def cuda_step_choices(choices: Mapping[str, int]) -> tuple[int, int, int, int, int]:
    """Those of a step or a residual, likewise: warp, blocks, split, kept, solvers."""
    warp, split, kept = (choices.get(name, -1) for name in ("warp", "split", "kept"))
    return warp, choices.get("blocks", 0), split, kept, choices.get("solvers", 0)


def all_told() -> Hashable:
    """What was chosen by hand, for every operator; equal where the same was."""
    return frozenset((who, frozenset(choices.items())) for who, choices in _told.items())


def _set(operator: str, backend: str, choices: dict[str, int]) -> None:
    if choices:
        _told[operator, backend] = dict(choices)
    else:
        _told.pop((operator, backend), None)
    # The kernels plan for themselves, in the library, where there is one.
    if backend != "cuda" or cuda.library_obstacle() is not None:
        return
    library = torch.ops.attractor_kernels_plans
    if operator in STEP_OPERATORS:
        library.choose_step(STEP_OPERATORS.index(operator), *cuda_step_choices(choices))
    else:
        library.choose_solve(CUDA_OPERATORS.index(operator), *cuda_choices(choices))
