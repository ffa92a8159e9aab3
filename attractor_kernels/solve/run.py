"""Running a solve, without gradients: one operator for a bound cell, a loop for any other map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import registry
from ..backends.reference import loop as reference
from ..backends.triton import Sizes
from ..info import SolveInfo
from ..ops._declare import SolveResult, call, in_functorch
from . import graph_loop
from .bound import BoundCell
from .direct import run_directly
from .loop import loop_backend, run_loop
from .maps import Map
from .spec import Spec


def run_map(f: Map, z0: Tensor, spec: Spec) -> tuple[Tensor, SolveInfo]:
    """Solves z = f(z) for a checked map f; z0 [*batch, *state]."""
    backend = loop_backend(z0, spec)
    if backend == "reference":
        return run_reference(f, z0, spec)
    if torch.compiler.is_compiling():
        return run_loop(f, z0, spec, backend, all_steps=True)
    if z0.device.type == graph_loop.LOOPS.device_type:
        return graph_loop.LOOPS.run(f, z0, spec, backend)
    return run_loop(f, z0, spec, backend)


def run_reference(f: Map, z0: Tensor, spec: Spec, constant_until: Tensor | None = None) -> tuple[Tensor, SolveInfo]:
    """The plain torch loop; differentiable where grad mode is on."""
    shape = z0.shape
    batch, groups = shape[: spec.batch_ndim], shape[spec.batch_ndim : spec.mixing_ndim]
    grouped = (batch.numel(), groups.numel(), shape[spec.mixing_ndim :].numel())
    z, steps, residual, status, trace = reference.solve(
        lambda z: f(z.view(shape)).reshape(grouped),
        z0.reshape(grouped),
        spec.solver,
        rtol=spec.rtol,
        atol=spec.atol,
        max_steps=spec.max_steps,
        min_steps=spec.min_steps,
        keep_best=spec.keep_best,
        trace=spec.trace,
        constant_until=constant_until,
    )
    return z.view(shape), SolveInfo(steps, residual, status, trace, "reference", batch)


def operator_backend(bound: BoundCell, z0: Tensor, spec: Spec) -> str | None:
    """The backend whose operator solves this bound cell as asked, None if no operator does.

    Operators take rows as problems, each with Anderson weights of its own.
    """
    if spec.tail is None or spec.batch_ndim != len(bound.shape) - 1 or spec.mixing_ndim != spec.batch_ndim:
        return None
    # The bound cell's device and dtype are z0's, and at hand.
    sizes = _sizes(bound, z0, spec) if z0.is_cuda else None
    return registry.backend_for(bound.name, spec.backend, bound.device, bound.dtype, sizes)


def _sizes(bound: BoundCell, z0: Tensor, spec: Spec) -> Sizes:
    assert spec.tail is not None
    hidden = 0
    if bound.name == "solve_mlp":
        w2 = bound.held[3]
        assert w2 is not None
        hidden = w2.shape[1]
    return Sizes(z0.shape[-1], hidden, spec.tail.history if spec.tail.solver else 0)


def check_bound(bound: BoundCell, z0: Tensor) -> None:
    """Raises where z0 is no state of this bound cell."""
    if not isinstance(z0, Tensor):
        raise TypeError(f"z0 must be a Tensor, got {type(z0).__name__}")
    if z0.shape != bound.shape:
        raise ValueError(
            f"z0 must have shape {list(bound.shape)}, from the input the cell is bound to and its state size, "
            f"got {list(z0.shape)}"
        )
    if z0.dtype != bound.dtype:
        raise TypeError(f"z0 must have the bound cell's dtype {bound.dtype}, got {z0.dtype}")
    if z0.device != bound.device:
        raise ValueError(f"z0 must be on the bound cell's device {bound.device}, got {z0.device}")


def as_rows(t: Tensor) -> Tensor:
    """[*batch, D] as [B, D]."""
    return t if t.dim() == 2 else t.reshape(t.shape[:-1].numel(), t.shape[-1])


def namespace_of(backend: str) -> str:
    return _NAMESPACES.get(backend, registry.NAMESPACE)


_NAMESPACES = {"reference": registry.REFERENCE_NAMESPACE, "triton": registry.TRITON_NAMESPACE}


def operator_arguments(bound: BoundCell, z0: Tensor, spec: Spec) -> tuple[Any, ...]:
    assert spec.tail is not None
    u, *parameters = bound.held
    assert u is not None
    return (as_rows(z0), as_rows(u), *parameters, *bound.constants, *spec.tail)


def operator_info(result: SolveResult, z0: Tensor, spec: Spec, backend: str) -> SolveInfo:
    trace = result.trace if spec.trace else None
    batch = None if z0.dim() == 2 else z0.shape[:-1]
    return SolveInfo(result.steps, result.residual, result.status, trace, backend, batch)


def run_operator(bound: BoundCell, z0: Tensor, spec: Spec, backend: str) -> tuple[Tensor, SolveInfo]:
    """Solves a bound cell by one operator; z0 [*batch, D]. For small solves this is the whole cost: no detours."""
    if z0.dim() != 2 or torch.compiler.is_compiling() or in_functorch():
        result = call(namespace_of(backend), bound.name, *operator_arguments(bound, z0, spec))
        return result.z.view(z0.shape), operator_info(result, z0, spec, backend)
    assert spec.tail is not None
    if backend == "cpu" and (solved := run_directly(bound, z0, spec.tail)) is not None:
        return solved
    op = bound.operator.overloads[namespace_of(backend)]
    with torch._C._AutoDispatchBelowAutograd():
        z, steps, residual, status, trace = op(z0, *bound.held, *bound.constants, *spec.tail)
    return z, SolveInfo(steps, residual, status, trace if spec.trace else None, backend)
