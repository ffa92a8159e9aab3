"""What every operator declaration shares: the two namespaces, the solver arguments, the result, shape checks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..info import Status
from ..options import Anderson, Auto, Picard, Solver, check_bool, check_float, check_int

NAMESPACE = "attractor_kernels"  # compiled kernels where there are some, plain torch elsewhere
REFERENCE_NAMESPACE = "attractor_kernels_reference"  # plain torch only

_LIBRARIES = [torch.library.Library(name, "FRAGMENT") for name in (NAMESPACE, REFERENCE_NAMESPACE)]

# How a solve is run, at the end of every solving operator's arguments. solver: 0 Picard, 1 Anderson, 2 Auto.
TAIL = (
    "int solver, int history, float damping, float ridge, float rtol, float atol, int max_steps, int min_steps, "
    "bool keep_best, bool trace, bool mixed"
)
SOLVED = "(Tensor z, Tensor steps, Tensor residual, Tensor status, Tensor trace)"


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


class SolveResult(NamedTuple):
    """What a solving operator returns; rows are problems."""

    z: Tensor  # [B, D], dtype of z0
    steps: Tensor  # int32 [B]
    residual: Tensor  # float32 [B]
    status: Tensor  # uint8 [B]
    trace: Tensor  # float32 [max_steps, B], or [0, B] without trace


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
    max_steps = check_int("max_steps", max_steps, low=1)
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


OPERATORS: dict[str, Operator] = {}  # every solving operator, by name


class Operator:
    """A solving operator: f's tensors and constants, and the gradient of its fixed point.

    The first tensor is the start z0 [B, D]; the others are held during the solve.
    """

    def __init__(self, name: str, tensors: str, constants: str, gradients: Callable[..., Any]) -> None:
        """tensors, constants: as in a schema.

        gradients(namespace, needs, v, z, *held tensors, *constants, tail) returns the gradient of each tensor, None
        where it is not needed (needs: a bool a tensor), and the result of the adjoint solve that `tail` asks for.
        """
        self.name = name
        OPERATORS[name] = self
        self.tensor_count = tensors.count(",") + 1
        self.constant_count = constants.count(",") + 1 if constants else 0
        self._gradients = gradients
        arguments = ", ".join(part for part in (tensors, constants, TAIL) if part)
        for library in _LIBRARIES:
            library.define(f"{name}({arguments}) -> {SOLVED}", tags=(torch.Tag.pt2_compliant_tag,))
            full_name = f"{library.ns}::{name}"
            torch.library.register_fake(full_name, self._fake, lib=library)
            torch.library.register_autograd(
                full_name, self._backward_in(library.ns), setup_context=self._save, lib=library
            )

    def implement(self, kernel: Callable[..., Any]) -> None:
        """Puts plain torch behind both namespaces, on every device that has no kernel of its own."""
        for library in _LIBRARIES:
            library.impl(self.name, kernel, "CompositeExplicitAutograd")

    def split(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Tail]:
        """The tensors, the constants and the tail of a call."""
        n, m = self.tensor_count, self.tensor_count + self.constant_count
        return arguments[:n], arguments[n:m], Tail(*arguments[m:])

    def differentiate(
        self,
        namespace: str,
        needs: Sequence[bool],
        v: Tensor,  # [B, D]
        saved: Sequence[Tensor | None],  # the fixed point [B, D], then the held tensors
        constants: Sequence[Any],
        tail: Tail,
    ) -> tuple[tuple[Tensor | None, ...], SolveResult]:
        """The gradients of all tensors, z0 first, and the adjoint solve. Half precision is solved in float32."""
        dtype = v.dtype
        if dtype in (torch.float16, torch.bfloat16):
            v, saved = v.float(), [None if t is None else t.float() for t in saved]
        z = saved[0]
        grads, solved = self._gradients(namespace, tuple(needs), v, *saved, *constants, tail)
        start = torch.zeros_like(z) if needs[0] and z is not None else None
        return tuple(
            g.to(dtype) if need and g is not None else None for need, g in zip(needs, (start, *grads), strict=True)
        ), solved

    def _fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, _, tail = self.split(arguments)
        z0 = tensors[0]
        rows = z0.shape[0]
        return (
            torch.empty_like(z0, memory_format=torch.contiguous_format),
            z0.new_empty(rows, dtype=torch.int32),
            z0.new_empty(rows, dtype=torch.float32),
            z0.new_empty(rows, dtype=torch.uint8),
            z0.new_empty((tail.max_steps if tail.trace else 0, rows), dtype=torch.float32),
        )

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, constants, tail = self.split(inputs)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[0], *tensors[1:])
        ctx.constants = (constants, tail.adjoint())

    def _backward_in(self, namespace: str) -> Callable[..., Any]:
        def backward(ctx: Any, v: Tensor | None, *_: Any) -> tuple[Any, ...]:
            rest = (None,) * (self.constant_count + len(Tail._fields))
            if v is None:
                return (None,) * self.tensor_count + rest
            constants, tail = ctx.constants
            needs = ctx.needs_input_grad[: self.tensor_count]
            grads, solved = self.differentiate(namespace, needs, v, ctx.saved_tensors, constants, tail)
            warn_if_failed(solved.status, solved.residual)
            return grads + rest

        return backward


def call(namespace: str, name: str, *arguments: Any) -> SolveResult:
    """The operator, past its autograd wrapper (which costs more than a small solve) where nothing needs it."""
    op = getattr(getattr(torch.ops, namespace), name).default
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or in_functorch():
        return SolveResult(*op(*arguments))
    with torch._C._AutoDispatchBelowAutograd():
        return SolveResult(*op(*arguments))


def in_functorch() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


class AdjointWarning(RuntimeWarning):
    """An adjoint equation was not solved to its tolerance, so a gradient is inexact."""


def warn_if_failed(status: Tensor, residual: Tensor) -> None:
    """Warns of adjoint problems that did not converge, where reading that waits for no device."""
    if type(status) is not Tensor or status.device.type != "cpu" or in_functorch():
        return
    failed = (status != Status.CONVERGED) & (status != Status.STAGNATED)
    if not bool(failed.any()):
        return
    # Rounded to a power of ten: Python shows a warning once per text.
    worst = f"{float(residual[failed].max()):.0e}"
    ends = ", ".join(Status(code).name for code in status[failed].unique().tolist())
    warnings.warn(
        f"the gradient is inexact: the adjoint solve ended with {ends} at a relative residual of about {worst}; "
        "raise max_steps or rtol (of the solve, or of Implicit), and see info.adjoint",
        AdjointWarning,
        stacklevel=2,
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
