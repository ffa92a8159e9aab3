"""Plans chosen by hand, for measurements and for whoever knows better than the cost model."""

from __future__ import annotations

from types import TracebackType

from ..options import check_int

_STEP = "anderson_step"
# What may be chosen, and between which limits.
_LIMITS: dict[str, tuple[int, int | None]] = {
    "rows": (16, 64),
    "warps": (1, 16),
    "stages": (1, 8),
    "registers": (32, 255),
    "programs": (1, None),
}
_OF_STEP = ("warps", "registers")

_told: dict[str, dict[str, int]] = {}


class use_plan:
    """Launches an operator's Triton kernel as told, not as the cost model has it: from now on, or in a `with` block.

    Args:
        operator: "solve_affine", "solve_mlp", "solve_gated", those with "_adjoint" or "_tangent", or "anderson_step".
        choices: any of rows (of a tile: 16, 32 or 64), warps (1, 2, 4, 8 or 16), stages (slices in flight), registers
            (of a thread) and programs; of `anderson_step` warps and registers. None of them: the model's choices.
            Bits may differ from those under the model's choices.

    Raises:
        TypeError, ValueError: a name is unknown, or a value is not as above.

    >>> with use_plan("solve_affine", rows=32, warps=8):
    ...     told("solve_affine")
    {'rows': 32, 'warps': 8}
    """

    def __init__(self, operator: str, **choices: int) -> None:
        if operator != _STEP and not operator.startswith("solve_"):
            raise ValueError(f"use_plan(operator) must be {_STEP!r} or an operator that solves, got {operator!r}")
        known = _OF_STEP if operator == _STEP else tuple(_LIMITS)
        for name, value in choices.items():
            if name not in known:
                raise TypeError(f"use_plan({operator!r}) takes {', '.join(known)}, got {name!r}")
            low, high = _LIMITS[name]
            check_int(f"use_plan({name}=...)", value, low=low, high=high)
            if name in ("rows", "warps") and value & (value - 1):
                raise ValueError(f"use_plan({name}=...) must be a power of two, got {value}")
        self._operator, self._previous = operator, told(operator)
        _set(operator, choices)

    def __enter__(self) -> use_plan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _set(self._operator, self._previous)


def told(operator: str) -> dict[str, int]:
    """What was chosen by hand for an operator's kernel."""
    return _told.get(operator, {})


def _set(operator: str, choices: dict[str, int]) -> None:
    if choices:
        _told[operator] = dict(choices)
    else:
        _told.pop(operator, None)
