"""Section `activity`: launches and waits of the host, by the profiler, for one solve of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import attractor_kernels as ak
from attractor_kernels.bench.cases import MAX_STEPS, RTOL, Case, Problem
from attractor_kernels.bench.contenders import bound_cell, picard_steps, unrolled
from attractor_kernels.bench.maps import MAPS

from .context import Cases, Context, Result
from .maps import WARM_UPS, TransformerProblem

_STEPS = 20
_SOLVE: dict[str, Any] = dict(rtol=RTOL, max_steps=MAX_STEPS)


def cases(context: Context) -> Cases:
    """A cell's solve, forward and with its gradient, per backend; an unknown map; the naive loop."""
    for cell in MAPS:
        problem = Problem(Case(cell, "orth", *context.sizes.counted), device=context.device.where)
        for backend in context.device.backends:
            yield f"{cell} {backend}", lambda p=problem, b=backend: _counted(context, _forward(p, b))
            yield f"{cell} {backend} with gradient", lambda p=problem, b=backend: _counted(context, _both(p, b))
        yield f"{cell} naive", lambda p=problem: _counted(context, _naive(p))
    unknown = TransformerProblem(context.sizes.maps[0], context.device.where)
    for solver in (ak.Picard(), ak.Anderson()):
        name = f"unknown map {type(solver).__name__.lower()}"
        yield name, lambda solver=solver: _counted(context, _layer(unknown, solver))
    yield "unknown map torch loop", lambda: _counted(context, _layer(unknown, ak.Anderson(), "reference"))


def _counted(context: Context, call: Callable[[], Any]) -> Result:
    for _ in range(WARM_UPS):
        backend = call()
    facts = {"backend": backend} if isinstance(backend, str) else {}
    return {**context.device.activity(call), **facts}


def _forward(problem: Problem, backend: str) -> Callable[[], Any]:
    bound, _ = bound_cell(problem, train=False)

    def call() -> str:
        with torch.no_grad():
            return ak.fixed_point(bound, problem.z0, solver=ak.Auto(), backend=backend, **_SOLVE)[1].backend

    return call


def _both(problem: Problem, backend: str) -> Callable[[], Any]:
    bound, leaves = bound_cell(problem, train=True)

    def call() -> str:
        z, info = ak.fixed_point(bound, problem.z0, solver=ak.Auto(), backend=backend, **_SOLVE)
        torch.autograd.grad(z, list(leaves.values()), problem.cotangent)
        return info.backend

    return call


def _naive(problem: Problem) -> Callable[[], Any]:
    solve = unrolled(problem, {**problem.parameters, "u": problem.u}, picard_steps(problem, "reference"))

    def call() -> None:
        with torch.no_grad():
            solve()

    return call


def _layer(problem: TransformerProblem, solver: ak.Picard | ak.Anderson, backend: str = "auto") -> Callable[[], Any]:
    options: dict[str, Any] = dict(rtol=0.0, max_steps=_STEPS, min_steps=_STEPS, backend=backend)
    layer = ak.nn.FixedPoint(problem.module, solver=solver, **options)

    def call() -> str:
        with torch.no_grad():
            layer(problem.x)
        assert layer.info is not None
        return layer.info.backend

    return call
