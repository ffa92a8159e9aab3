"""The checked arguments of one solve, made once and used for every call with the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..backends import registry
from ..ops._arguments import Tail
from ..options import (
    Anderson,
    Auto,
    Broyden,
    Gradient,
    Implicit,
    Solver,
    check_bool,
    check_choice,
    check_float,
    check_gradient,
    check_int,
    check_max_steps,
    check_solver,
)

PRECISIONS = ("full", "mixed")
# States whose own products are in few bits: what precision=None stands for with them does not depend on the setting for
# float32.
HALVES = (torch.bfloat16, torch.float16)


def default_precision() -> str:
    """What precision=None stands for now, but for HALVES, whose products of differences are always permitted."""
    return "full" if torch.get_float32_matmul_precision() == "highest" else "mixed"


# As torch.compiler.assume_constant_result does, which would load the compiler (seconds) for everybody. The compiler
# guards the setting itself.
default_precision._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Spec:
    """How to solve. Everything below the front door trusts it."""

    solver: Solver
    gradient: Gradient
    rtol: float
    atol: float
    max_steps: int
    min_steps: int
    batch_ndim: int
    mixing_ndim: int
    keep_best: bool
    trace: bool
    mixed: bool
    backend: str
    tail: Tail | None  # the same for an operator; None where the operators lack the solver
    of_adjoint: Spec | None  # None: the adjoint equation is solved like this

    @property
    def adjoint(self) -> Spec:
        """How to solve the adjoint equation: relative to its own solution, in the forward's way unless told."""
        return self if self.of_adjoint is None else self.of_adjoint


def make_spec(
    solver: Any,
    gradient: Any,
    rtol: Any,
    atol: Any,
    max_steps: Any,
    min_steps: Any,
    batch_ndim: Any,
    mixing_ndim: Any,
    keep: Any,
    trace: Any,
    precision: Any,
    backend: Any,
) -> Spec:
    """Checks every option. `precision=None` follows torch.get_float32_matmul_precision() at the time of the call."""
    max_steps = check_max_steps("max_steps", max_steps)
    batch_ndim = check_int("batch_ndim", batch_ndim, low=0)
    if mixing_ndim is not None:
        mixing_ndim = check_int("mixing_ndim", mixing_ndim, low=0)
        if mixing_ndim < batch_ndim:
            raise ValueError(f"mixing_ndim must be at least batch_ndim ({batch_ndim}), got {mixing_ndim}")
    if precision is None:
        precision = default_precision()
    backend = check_choice("backend", backend, registry.BACKENDS)
    registry.require_usable("backend", backend)
    spec = _with_tail(
        Spec(
            solver=check_solver("solver", solver),
            gradient=check_gradient("gradient", gradient),
            rtol=check_float("rtol", rtol),
            atol=check_float("atol", atol),
            max_steps=max_steps,
            min_steps=check_int("min_steps", min_steps, low=0, high=max_steps),
            batch_ndim=batch_ndim,
            mixing_ndim=batch_ndim if mixing_ndim is None else mixing_ndim,
            keep_best=check_choice("keep", keep, ("last", "best")) == "best",
            trace=check_bool("trace", trace),
            mixed=check_choice("precision", precision, PRECISIONS) == "mixed",
            backend=backend,
            tail=None,
            of_adjoint=None,
        )
    )
    return replace(spec, of_adjoint=_of_adjoint(spec))


def _of_adjoint(spec: Spec) -> Spec:
    implicit = spec.gradient if isinstance(spec.gradient, Implicit) else Implicit()
    return _with_tail(
        replace(
            spec,
            solver=spec.solver if implicit.solver is None else implicit.solver,
            gradient=Implicit(),
            rtol=spec.rtol if implicit.rtol is None else implicit.rtol,
            atol=0.0,
            max_steps=spec.max_steps if implicit.max_steps is None else implicit.max_steps,
            min_steps=0,
            keep_best=False,
            trace=False,
        )
    )


def _with_tail(spec: Spec) -> Spec:
    solver = spec.solver
    if isinstance(solver, Auto) and spec.mixing_ndim > spec.batch_ndim:
        # Auto decides from a whole problem's residuals; within one, a later token would change an earlier one's steps.
        solver = Anderson(solver.history, solver.damping, solver.ridge)
        spec = replace(spec, solver=solver)
    if isinstance(solver, Broyden):
        return replace(spec, tail=None)
    tail = Tail(
        solver.code,  # type: ignore[attr-defined]
        getattr(solver, "history", 1),
        solver.damping,  # type: ignore[attr-defined]
        getattr(solver, "ridge", 0.0),
        spec.rtol,
        spec.atol,
        spec.max_steps,
        spec.min_steps,
        spec.keep_best,
        spec.trace,
        spec.mixed,
    )
    return replace(spec, tail=tail)


def check_start(z0: Any, spec: Spec) -> None:
    """Raises where z0 is no state for this spec."""
    if not isinstance(z0, Tensor):
        raise TypeError(f"z0 must be a Tensor, got {type(z0).__name__}")
    if not z0.dtype.is_floating_point:
        raise TypeError(f"z0 must have a floating-point dtype, got {z0.dtype}")
    if z0.dim() < spec.mixing_ndim:
        if z0.dim() < spec.batch_ndim:
            raise ValueError(f"batch_ndim must be at most z0's {z0.dim()} dimensions, got {spec.batch_ndim}")
        raise ValueError(f"mixing_ndim must be at most z0's {z0.dim()} dimensions, got {spec.mixing_ndim}")
