"""Section `training`: gradients through a fixed point, and the memory they take."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

import attractor_kernels as ak
from attractor_kernels.bench.cases import Case, Problem
from attractor_kernels.bench.contenders import SOLVERS, bound_cell, unrolled

from .cells import run_solve
from .context import Cases, Context, Result

_SPARE = 1 << 20  # bytes by which a peak may move


def cases(context: Context) -> Cases:
    """Speed, then peak memory against the steps allowed."""
    for solve in context.sizes.training:
        yield str(solve), lambda solve=solve: run_solve(context, solve)
    for backend in context.device.backends:
        for solver in SOLVERS:
            name = f"memory {backend} {solver}"
            yield name, lambda backend=backend, solver=solver: _memory(context, _cell(context, backend, solver))
    yield "memory unknown map", lambda: _memory(context, _unknown(context))
    yield "memory naive", lambda: {"peak_bytes": _peaks(context, _naive(context))}


Train = Callable[[int], Any]  # forward and backward with so many steps


def _problem(context: Context) -> Problem:
    return Problem(Case("affine", "orth", *context.sizes.memory), device=context.device.where)


def _exactly(steps: int) -> dict[str, Any]:
    return dict(rtol=0.0, max_steps=steps, min_steps=steps)


def _cell(context: Context, backend: str, solver: str) -> Train:
    problem = _problem(context)
    bound, leaves = bound_cell(problem, train=True)

    def train(steps: int) -> Any:
        z, _ = ak.fixed_point(bound, problem.z0, solver=SOLVERS[solver], backend=backend, **_exactly(steps))
        return torch.autograd.grad(z, list(leaves.values()), problem.cotangent)

    return train


def _unknown(context: Context) -> Train:
    problem = _problem(context)
    leaves = problem.leaves()
    step = problem.map.step(leaves["u"], {name: leaf for name, leaf in leaves.items() if name != "u"})

    def train(steps: int) -> Any:
        z, _ = ak.fixed_point(step, problem.z0, solver=ak.Anderson(), **_exactly(steps))
        return torch.autograd.grad(z, list(leaves.values()), problem.cotangent)

    return train


def _naive(context: Context) -> Train:
    problem = _problem(context)
    leaves = problem.leaves()

    def train(steps: int) -> Any:
        z = unrolled(problem, leaves, steps)()
        return torch.autograd.grad(z, list(leaves.values()), problem.cotangent)

    return train


def _peaks(context: Context, train: Train) -> dict[str, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ak.AdjointWarning)  # steps are counted here, nothing has to converge
        return {str(k): context.device.peak_bytes(lambda k=k: train(k)) for k in context.sizes.memory_steps}


def _memory(context: Context, train: Train) -> Result:
    peaks = _peaks(context, train)
    few, *_, many = peaks.values()
    grown = many - few
    problems = [] if grown <= _SPARE else [f"the peak grows by {grown} bytes between {' and '.join(peaks)} steps"]
    return {"peak_bytes": peaks, "problems": problems}
