"""How gradients flow through a fixed point: the one place that knows about differentiation.

A gradient mode changes no value: z and info are those of the solve without gradients (`Unrolled` is differentiated as
it runs). With J = df/dz at z and v the cotangent of z, every mode passes some w on to f's own backward: Implicit the
solution of w = J^T w + v, OneStep v itself, Neumann a partial sum of (J^T)^k v, Phantom what a few steps of f make.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..info import SolveInfo
from ..ops._declare import Plan, SolveResult, call, solve_with, warn_if_failed
from ..options import Gradient, Implicit, Neumann, OneStep, Phantom, Unrolled
from .bound import BoundCell
from .capture import Captured, depends_on_others, evaluate_and_capture, evaluate_at, reaches_only
from .maps import AdjointMap, Map
from .run import namespace_of, operator_arguments, operator_info, run_map, run_reference
from .spec import Spec


def attach(f: Map, z0: Tensor, z: Tensor, spec: Spec, info: SolveInfo) -> Tensor:
    """z [*batch, *state], solved without gradients, with the gradient that spec.gradient asks for.

    f is evaluated once more, attached, in the forward pass, so what its modules hook onto a forward and a backward
    (DDP, FSDP) sees an ordinary call.
    """
    mode = spec.gradient
    if isinstance(mode, Implicit):
        leaf = z.detach().requires_grad_()
        fz, captured = evaluate_and_capture(f, leaf)
        if not (captured.tensors or z0.requires_grad or depends_on_others(fz, leaf)):
            return z
        return _Implicit.apply(_Problem(f, spec, info, leaf, fz, captured), z0, z, fz, *captured.tensors)
    if isinstance(mode, Neumann):
        leaf = z.detach().requires_grad_()
        fz = f(leaf)
        return _Neumann.apply(spec, leaf, z0, z, fz) if z0.requires_grad or depends_on_others(fz, leaf) else z
    out = z.detach()
    if isinstance(mode, OneStep):
        return _Replace.apply(mode, z0, z, f(out))
    assert isinstance(mode, Phantom)
    for _ in range(mode.steps):
        out = f(out) if mode.damping == 1 else out + mode.damping * (f(out) - out)
    return _Replace.apply(mode, z0, z, out)


def unroll(f: Map, z0: Tensor, spec: Spec) -> tuple[Tensor, SolveInfo]:
    """Automatic differentiation through the solver's steps, all of them or each problem's last ones."""
    assert isinstance(spec.gradient, Unrolled)
    last = spec.gradient.last
    if last is None:
        return run_reference(f, z0, spec)
    # A first run finds how many steps each problem takes. Both runs draw the same random numbers.
    devices = [] if z0.device.type == "cpu" else [z0.device]
    with torch.no_grad(), torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cuda"):
        _, info = run_reference(f, z0.detach(), spec)
    return run_reference(f, z0, spec, constant_until=info.steps.reshape(-1) - 1 - last)


def solve_bound(bound: BoundCell, z0: Tensor, spec: Spec, backend: str) -> tuple[Tensor, SolveInfo]:
    """A bound cell solved by its operator, with the implicit gradient."""
    arguments = operator_arguments(bound, z0, spec)
    namespace = namespace_of(backend)
    tensors, constants, tail = bound.operator.split(arguments)
    adjoint = spec.adjoint.tail
    assert adjoint is not None  # the front door sends no others here
    if torch.compiler.is_compiling():  # which cannot trace what `report` does
        if adjoint == tail.adjoint():
            result = call(namespace, bound.name, *arguments)
            return result.z.view(z0.shape), operator_info(result, z0, spec, backend)
        with torch.no_grad():
            result = call(namespace, bound.name, *arguments)
        attached = getattr(getattr(torch.ops, namespace), f"{bound.name}_gradient").default
        z = attached(result.z, *tensors[1:], *constants, *adjoint)
        return z.view(z0.shape), operator_info(result, z0, spec, backend)

    def report(solved: SolveResult) -> None:
        info.adjoint = info.like(solved.steps, solved.residual, solved.status)

    plan = Plan(bound.operator, namespace, constants, tail, adjoint, report)
    result = solve_with(plan, tensors)
    info = operator_info(result, z0, spec, backend)
    return result.z if z0.dim() == 2 else result.z.view(z0.shape), info


class _Implicit(torch.autograd.Function):
    """Passes z through; its backward solves the adjoint equation and hands the solution to f(z)'s own backward."""

    @staticmethod
    def forward(ctx: Any, problem: _Problem, z0: Tensor, z: Tensor, fz: Tensor, *captured: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.problem = problem
        ctx.captured = len(captured)
        out = z.view_as(z)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> tuple[Any, ...]:
        problem = ctx.problem
        unused = (None,) * ctx.captured
        if v is None:
            return (None, None, None, None, *unused)
        start = torch.zeros_like(v) if ctx.needs_input_grad[1] else None
        if torch.is_grad_enabled():
            return (None, start, None, None, *problem.connected_gradients(ctx.saved_tensors[0], v))
        return (None, start, None, problem.adjoint_solution(v), *unused)


class _Problem:
    """A solved fixed-point problem with one attached evaluation, fz = f(leaf) at leaf = z."""

    def __init__(self, f: Map, spec: Spec, info: SolveInfo | None, leaf: Tensor, fz: Tensor, captured: Captured):
        self.f, self.spec, self.info, self.leaf, self.fz, self.captured = f, spec, info, leaf, fz, captured

    def adjoint_solution(self, v: Tensor) -> Tensor:
        """w = J^T w + v at the solution."""
        w, info = run_map(AdjointMap(self.f, self.leaf, self.fz, v), v, self.spec.adjoint)
        _report(self.info, info)
        return w

    def connected_gradients(self, z: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the captured tensors as functions of them, of z and of v, for second derivatives.

        f is evaluated again at the connected z; the adjoint solution w is the fixed point of a map that depends on
        the same tensors, and is attached to them the same way.
        """
        obstacle = self.captured.obstacle
        if obstacle is None:
            fz, alias, aliases = evaluate_at(self.f, z, self.captured)
            obstacle = _obstacle(self.fz, fz, (alias, *aliases))
        if obstacle is not None:
            raise RuntimeError(
                f"fixed_point cannot form a second derivative of this map: {obstacle}. "
                "Drop create_graph=True, or use gradient=Unrolled()"
            )
        if not fz.requires_grad:
            return (None,) * len(aliases)

        def adjoint(w: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(
                fz, alias, w, retain_graph=True, create_graph=torch.is_grad_enabled(), allow_unused=True
            )
            return v if product is None else product + v

        spec = self.spec.adjoint
        with torch.no_grad():
            w, info = run_map(adjoint, v.detach(), spec)
        _report(self.info, info)
        leaf = w.detach().requires_grad_()
        attached = adjoint(leaf)
        inner = _Problem(adjoint, spec, info, leaf, attached, Captured((), "third derivatives are not supported"))
        w = _Implicit.apply(inner, v, w, attached)
        return torch.autograd.grad(fz, aliases, w, create_graph=True, allow_unused=True)


class _Replace(torch.autograd.Function):
    """The value of z with the gradient of `out`."""

    @staticmethod
    def forward(ctx: Any, mode: Gradient, z0: Tensor, z: Tensor, out: Tensor) -> Tensor:
        ctx.mode = mode
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        _refuse_second_derivative(ctx.mode)
        return None, torch.zeros_like(v) if ctx.needs_input_grad[1] else None, None, v


class _Neumann(torch.autograd.Function):
    """The value of z; the backward hands the truncated Neumann series to f(z)'s own backward."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, leaf: Tensor, z0: Tensor, z: Tensor, fz: Tensor) -> Tensor:
        ctx.spec, ctx.leaf, ctx.fz = spec, leaf, fz
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        mode = ctx.spec.gradient
        _refuse_second_derivative(mode)
        w = term = v
        for _ in range(mode.terms):
            (product,) = torch.autograd.grad(ctx.fz, ctx.leaf, term, retain_graph=True, allow_unused=True)
            if product is None:
                break
            term = product if mode.clip is None else _clip(product, v, mode.clip, ctx.spec.batch_ndim)
            w = w + term
        return None, None, torch.zeros_like(v) if ctx.needs_input_grad[2] else None, None, w


def _clip(term: Tensor, v: Tensor, clip: float, batch_ndim: int) -> Tensor:
    """term, scaled down per problem to a norm of at most clip * |v|."""
    if term.dim() == batch_ndim:  # each number a problem
        norms = [t.abs() for t in (term, v)]
    else:
        state = tuple(range(batch_ndim, term.dim()))
        norms = [torch.linalg.vector_norm(t, dim=state, keepdim=True, dtype=torch.float64) for t in (term, v)]
    factor = torch.where(norms[0] > clip * norms[1], clip * norms[1] / norms[0], 1.0)
    return term * factor.to(term.dtype)


def _refuse_second_derivative(mode: Gradient) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"gradient={mode!r} has no second derivative: it approximates the gradient with z held constant. "
            "Drop create_graph=True, or use gradient=Implicit() or Unrolled()"
        )


def _obstacle(before: Tensor, after: Tensor, sources: tuple[Tensor, ...]) -> str | None:
    """Why f evaluated again cannot stand for f as it was solved; None if it can."""
    if not reaches_only(after, sources):
        return "it uses tensors with gradients out of torch's sight, for instance in a custom Function"
    tolerance = torch.finfo(before.dtype).eps ** 0.5
    change = torch.linalg.vector_norm((before - after).detach().float())
    if bool(change > tolerance * torch.linalg.vector_norm(before.detach().float())):
        return "evaluated again, it gave another value (is it random, or were its parameters changed?)"
    return None


def _report(info: SolveInfo | None, adjoint: SolveInfo) -> None:
    if info is not None:
        info.adjoint = adjoint
    warn_if_failed(adjoint.status, adjoint.residual)
