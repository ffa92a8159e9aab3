"""Declaring a solving operator: its schema, fake, derivative and vmap, once, in three namespaces."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..info import Status
from ._arguments import TAIL, Tail, make_tail

__all__ = [
    "NAMESPACE",
    "OPERATORS",
    "REFERENCE_NAMESPACE",
    "TRITON_NAMESPACE",
    "AdjointWarning",
    "Operator",
    "SolveResult",
    "Tail",
    "call",
    "make_tail",
    "warn_if_failed",
]

NAMESPACE = "attractor_kernels"  # compiled kernels where there are some, plain torch elsewhere
REFERENCE_NAMESPACE = "attractor_kernels_reference"  # plain torch only
TRITON_NAMESPACE = "attractor_kernels_triton"  # Triton kernels on CUDA, plain torch elsewhere

_LIBRARIES = [torch.library.Library(name, "FRAGMENT") for name in (NAMESPACE, REFERENCE_NAMESPACE, TRITON_NAMESPACE)]
_SOLVED = "(Tensor z, Tensor steps, Tensor residual, Tensor status, Tensor trace)"


class SolveResult(NamedTuple):
    """What a solving operator returns; rows are problems."""

    z: Tensor  # [B, D], dtype of z0
    steps: Tensor  # int32 [B]
    residual: Tensor  # float32 [B]
    status: Tensor  # uint8 [B]
    trace: Tensor  # float32 [max_steps, B], or [0, B] without trace


OPERATORS: dict[str, Operator] = {}  # every solving operator, by name


class Operator:
    """A solving operator: f's tensors and constants, and the gradient of its fixed point.

    The first tensor is the start z0 [B, D]; the others are held during the solve.
    """

    def __init__(self, name: str, tensors: str, constants: str, rows: str, gradients: Callable[..., Any]) -> None:
        """tensors, constants: as in a schema. rows: names of the tensors with a row for each problem.

        gradients(namespace, needs, v, z, *held tensors, *constants, tail) returns the gradient of each tensor, None
        where it is not needed (needs: a bool a tensor), and the result of the adjoint solve that `tail` asks for.
        """
        self.name = name
        OPERATORS[name] = self
        self.tensor_count = tensors.count(",") + 1
        self.rows = tuple(part.split()[-1] in rows for part in tensors.split(","))
        self.constant_count = constants.count(",") + 1 if constants else 0
        self._gradients = gradients
        self.overloads: dict[str, Any] = {}  # by namespace
        arguments = ", ".join(part for part in (tensors, constants, TAIL) if part)
        for library in _LIBRARIES:
            library.define(f"{name}({arguments}) -> {_SOLVED}", tags=(torch.Tag.pt2_compliant_tag,))
            self.overloads[library.ns] = getattr(getattr(torch.ops, library.ns), name).default
            full_name = f"{library.ns}::{name}"
            torch.library.register_fake(full_name, self._fake, lib=library)
            torch.library.register_autograd(
                full_name, self._backward_in(library.ns), setup_context=self._save, lib=library
            )
            torch.library.register_vmap(full_name, self._vmap_in(library.ns), lib=library)
            # The identity on a solved z, with the derivative of the solve: an adjoint with a tail of its own, as an
            # operator for torch.compile.
            at_name = f"{name}_gradient"
            library.define(f"{at_name}({arguments}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
            library.impl(at_name, lambda z, *_: z.clone(), "CompositeExplicitAutograd")
            torch.library.register_fake(f"{library.ns}::{at_name}", lambda z, *_: torch.empty_like(z), lib=library)
            torch.library.register_autograd(
                f"{library.ns}::{at_name}", self._backward_in(library.ns), setup_context=self._save, lib=library
            )

    def implement(self, kernel: Callable[..., Any]) -> None:
        """Puts plain torch behind all namespaces, on every device that has no kernel of its own."""
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

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        tensors, constants, tail = self.split(inputs)
        z, *rest = (output,) if isinstance(output, Tensor) else output
        ctx.mark_non_differentiable(*rest)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, *tensors[1:])
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

    def fold(
        self, size: int, in_dims: Sequence[int | None], arguments: Sequence[Any], solve: Callable[..., SolveResult]
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """A batch of calls, mapped over in_dims, and the dimensions of the results that it is mapped to.

        Rows are problems, so a batch of row tensors is only more rows; other tensors that differ within the batch
        take a call each.
        """
        n = self.tensor_count
        dims = [None if t is None else d for t, d in zip(arguments[:n], in_dims[:n], strict=True)]
        moved = [t if d is None else t.movedim(d, 0) for t, d in zip(arguments[:n], dims, strict=True)]
        if any(d is not None and not row for d, row in zip(dims, self.rows, strict=True)):
            singles = [
                solve(*(t if d is None else t[i] for t, d in zip(moved, dims, strict=True)), *arguments[n:])
                for i in range(size)
            ]
            return tuple(torch.stack(parts) for parts in zip(*singles, strict=True)), (0,) * 5
        rows = [
            t if t is None or not row else (t.expand(size, *t.shape) if d is None else t).flatten(0, 1)
            for t, d, row in zip(moved, dims, self.rows, strict=True)
        ]
        z, steps, residual, status, trace = solve(*rows, *arguments[n:])
        each = [t.unflatten(0, (size, -1)) for t in (z, steps, residual, status)]
        return (*each, trace.unflatten(1, (size, -1))), (0, 0, 0, 0, 1)

    def _vmap_in(self, namespace: str) -> Callable[..., Any]:
        def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
            return self.fold(info.batch_size, in_dims, arguments, lambda *a: call(namespace, self.name, *a))

        return vmap


class Plan:
    """What a differentiable call needs besides its tensors; `report` takes the adjoint's result."""

    def __init__(
        self,
        operator: Operator,
        namespace: str,
        constants: Sequence[Any],
        tail: Tail,
        adjoint: Tail,
        report: Callable[[SolveResult], None] | None = None,
    ) -> None:
        self.operator, self.namespace = operator, namespace
        self.constants, self.tail, self.adjoint = constants, tail, adjoint
        self.report = report
        # What the solve returns besides z: as outputs of a Function they would cost more than a small solve.
        self.unattached: list[Tensor] = []


def _solve(plan: Plan, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        return plan.operator.overloads[plan.namespace](*tensors, *plan.constants, *plan.tail)


def _differentiate(ctx: Any, v: Tensor | None, *_: Any) -> tuple[Any, ...]:
    plan = ctx.plan
    needs = ctx.needs_input_grad[1:]
    if v is None:
        return (None,) * (1 + len(needs))
    grads, solved = plan.operator.differentiate(
        plan.namespace, needs, v, ctx.saved_tensors, plan.constants, plan.adjoint
    )
    if plan.report is not None:
        plan.report(solved)
    warn_if_failed(solved.status, solved.residual)
    return (None, *grads)


class _Solve(torch.autograd.Function):
    """An operator and its derivative, with an adjoint that has options and a report of its own."""

    backward = staticmethod(_differentiate)

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> Tensor:
        z, *plan.unattached = _solve(plan, tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, *tensors[1:])
        ctx.plan = plan
        return z


class _SolveInFunctorch(torch.autograd.Function):
    """The same in the form that torch.func takes, which costs three times as much to call."""

    backward = staticmethod(_differentiate)

    @staticmethod
    def forward(plan: Plan, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return _solve(plan, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        plan, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[0], *tensors[1:])
        ctx.plan = plan

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], plan: Plan, *tensors: Any) -> Any:
        return plan.operator.fold(info.batch_size, in_dims[1:], tensors, lambda *rows: solve_with(plan, rows))


def solve_with(plan: Plan, tensors: Sequence[Tensor | None]) -> SolveResult:
    """The operator, differentiable as the plan says."""
    if in_functorch():
        return SolveResult(*_SolveInFunctorch.apply(plan, *tensors))
    z = _Solve.apply(plan, *tensors)
    return SolveResult(z, *plan.unattached)


def call(namespace: str, name: str, *arguments: Any) -> SolveResult:
    """The operator, past its autograd wrapper (which costs more than a small solve) where nothing needs it."""
    operator = OPERATORS[name]
    op = operator.overloads[namespace]
    if torch.compiler.is_compiling():
        return SolveResult(*op(*arguments))
    if in_functorch():
        tensors, constants, tail = operator.split(arguments)
        return solve_with(Plan(operator, namespace, constants, tail, tail.adjoint()), tensors)
    if torch.is_grad_enabled():
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
    # The usual case, without a torch operation: all converged.
    count = status.numel()
    if status.is_contiguous() and ctypes.string_at(status.data_ptr(), count).count(0) == count:
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
