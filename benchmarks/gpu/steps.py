"""Section `steps`: the fused step of an unknown map, against its bytes and against torchdeq's step.

What is timed is CALLS steps on given pairs z, f(z), taken in turn so that the history is full and no two of its
differences are equal; the map itself costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attractor_kernels.bench.contenders import Contender, Runner, Unavailable
from attractor_kernels.bench.gate import LOOSE_TOLERANCE, TOLERANCE
from attractor_kernels.bench.gating import admit, time_entries
from attractor_kernels.bench.peers import require_torchdeq
from attractor_kernels.bench.results import Row
from attractor_kernels.ops import step_buffers
from attractor_kernels.options import Anderson, Picard, Solver

from .cells import wrong
from .context import Cases, Context, Result
from .floors import Ceilings, step_floor
from .sizes import Step

CALLS = 10
_NAMESPACES = {"triton": "attractor_kernels_triton", "reference": "attractor_kernels_reference"}
_ENDLESS = (0.0, 0.0, 2**31 - 1, 2**31 - 1, False)  # rtol, atol, max_steps, min_steps, keep_best


def cases(context: Context) -> Cases:
    """One a size."""
    for step in context.sizes.steps:
        yield str(step), lambda step=step: run_step(context, step)


class StepProblem:
    """Pairs z, f(z) of one size, and the iterate after CALLS + history steps on them."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self.dtype = getattr(torch, step.dtype)
        generator = torch.Generator(device).manual_seed(step.entries)
        shape = (step.problems, step.entries)
        # As many as differ within a full history, and one more.
        self.pairs = [
            tuple(torch.randn(shape, generator=generator, device=device).to(self.dtype) for _ in range(2))
            for _ in range(step.history + 2)
        ]
        self.solver: Solver = Anderson(step.history) if step.history else Picard()

    def runner(self, namespace: str, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
        """CALLS steps of an operator, from where the last call ended."""
        pairs = [tuple(t.to(dtype or self.dtype) for t in pair) for pair in self.pairs]
        buffers = step_buffers(torch.zeros_like(pairs[0][0]), self.step.problems, 1, self.solver)
        operator = getattr(torch.ops, namespace).anderson_step
        options = (self.solver.code, 1.0, getattr(self.solver, "ridge", 0.0), *_ENDLESS)  # type: ignore[attr-defined]
        turns: Iterator[tuple[Tensor, ...]] = itertools.cycle(pairs)

        def call() -> Tensor:
            for z, fz in itertools.islice(turns, CALLS):
                operator(z, fz, *buffers, *options)
            return buffers.out

        return call

    @cached_property
    def after_calls(self) -> Tensor:
        """The iterate after CALLS steps, in float64 plain torch."""
        return self.runner("attractor_kernels_reference", torch.float64)()

    def expected(self, which: str) -> dict[str, Tensor]:
        return {"z": self.after_calls}


def _ours(backend: str) -> Contender:
    def build(problem: Any, which: str, steps: int) -> Runner:
        namespace = _NAMESPACES.get(backend, "attractor_kernels")
        return Runner(problem.runner(namespace), lambda out: {"z": out.clone()}, {"backend": backend})

    return Contender(backend, f"the operator anderson_step, {backend}", ("step",), build, ours=True)


def _torchdeq(problem: Any, which: str, steps: int) -> Runner:
    solver = require_torchdeq().solver.get_solver("anderson" if problem.step.history else "fixed_point_iter")
    turns = itertools.cycle(problem.pairs)
    if problem.dtype != torch.float32:
        raise Unavailable(f"torch.linalg, which torchdeq solves with, has no {problem.dtype}")
    options = {"m": problem.step.history + 1} if problem.step.history else {}

    def call() -> Tensor:
        with torch.no_grad():
            return solver(lambda z: next(turns)[1], problem.pairs[0][0], max_iter=CALLS, tol=0.0, **options)[0]

    return Runner(call, None, {})


_TORCHDEQ = Contender("torchdeq", "torchdeq's own step", ("step",), _torchdeq)


def run_step(context: Context, step: Step) -> Result:
    """One size: checked, timed, held against its bytes."""
    device, sizes = context.device, context.sizes
    problem: Any = StepProblem(step, device.where)
    family = f"history {step.history}"
    row = Row("anderson_step", family, step.problems, step.entries, step.dtype, "step", CALLS)
    tolerance = TOLERANCE if step.dtype == "float32" else 30 * LOOSE_TOLERANCE
    contenders = [_ours(name) for name in device.backends]
    if "reference" not in device.backends:
        eager = Contender("eager", "the same step in plain torch", ("step",), _ours("reference").build)
        contenders.append(eager)
    contenders = [replace(one, tolerances=(tolerance, tolerance)) for one in (*contenders, _TORCHDEQ)]
    runners = {contender.name: admit(contender, problem, "step", CALLS, row) for contender in contenders}
    time_entries(row, runners, sizes.seconds, sizes.repeats, device.stopwatch)
    item = problem.dtype.itemsize
    floor = step_floor(step.problems * step.entries, step.history, item, Ceilings.of(context.earlier("ceilings")))
    for entry in row.entries.values():
        if entry.ours:
            entry.facts |= {"floor_seconds": floor.seconds * CALLS, "bound": floor.bound, "steps_max": CALLS}
    return {"rows": [row.to_json()], "problems": wrong(row)}
