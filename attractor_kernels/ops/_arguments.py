"""The solver arguments every solving operator ends with, and checks of tensors for the public functions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..options import Anderson, Auto, Picard, Solver, check_bool, check_float, check_int, check_max_steps

# How a solve is run, at the end of every solving operator's arguments. solver: 0 Picard, 1 Anderson, 2 Auto.
TAIL = (
    "int solver, int history, float damping, float ridge, float rtol, float atol, int max_steps, int min_steps, "
    "bool keep_best, bool trace, bool mixed"
)


class Tail(NamedTuple):
    solver: int
    history: int
    damping: float
    ridge: float
    rtol: float
    atol: float
    max_steps: int
    min_steps: int
    keep_best: bool
    trace: bool
    mixed: bool

    def options(self) -> Solver:
        """The solver these arguments stand for."""
        if self.solver == Picard.code:
            return Picard(self.damping)
        return (Anderson if self.solver == Anderson.code else Auto)(self.history, self.damping, self.ridge)

    def adjoint(self) -> Tail:
        """The same solver for the adjoint equation, whose tolerance is relative to its own solution."""
        return self._replace(atol=0.0, min_steps=0, keep_best=False, trace=False)


def make_tail(
    solver: Solver,
    rtol: float,
    atol: float,
    max_steps: int,
    min_steps: int,
    keep_best: bool,
    trace: bool,
    mixed: bool,
) -> Tail:
    """The checked solver arguments of an operator."""
    if not isinstance(solver, (Picard, Anderson, Auto)):
        raise TypeError(f"solver must be an Auto, Anderson or Picard, got {solver!r}")
    max_steps = check_max_steps("max_steps", max_steps)
    return Tail(
        solver.code,
        getattr(solver, "history", 1),
        solver.damping,
        getattr(solver, "ridge", 0.0),
        check_float("rtol", rtol),
        check_float("atol", atol),
        max_steps,
        check_int("min_steps", min_steps, low=0, high=max_steps),
        check_bool("keep_best", keep_best),
        check_bool("trace", trace),
        check_bool("mixed", mixed),
    )


def check_start(z0: Tensor) -> tuple[int, int]:
    """The rows and the state size of a checked z0."""
    if not isinstance(z0, Tensor):
        raise TypeError(f"z0 must be a Tensor, got {type(z0).__name__}")
    if z0.dim() != 2:
        raise ValueError(f"z0 must have shape [B, D], got {list(z0.shape)}")
    if not z0.dtype.is_floating_point:
        raise TypeError(f"z0 must have a floating-point dtype, got {z0.dtype}")
    return z0.shape[0], z0.shape[1]


def check_tensors(z0: Tensor, **expected: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raises an error that names the first tensor whose shape, dtype or device is not the expected one."""
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != z0.dtype:
            raise TypeError(f"{name} must have z0's dtype {z0.dtype}, got {tensor.dtype}")
        if tensor.device != z0.device:
            raise ValueError(f"{name} must be on z0's device {z0.device}, got {tensor.device}")
