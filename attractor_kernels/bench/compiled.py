"""The naive loop through torch.compile, in the form that is fastest for it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .cases import Problem
from .contenders import Contender, Runner, Unavailable, unrolled, without_gradients

_TRIALS = 5


def forms(problem: Problem, steps: int) -> dict[str, Callable[[], Tensor]]:
    """The loop as one graph of all its steps, and as inductor's own while_loop.

    A compiled step called from a Python loop is not among them: it checks its guards at every call, and was slower
    than one of these two at every shape. On a device it is the only one: the graph of all steps takes long to compile,
    and the while_loop reads its condition on the host.
    """
    import torch._dynamo

    torch._dynamo.reset()
    if problem.z0.device.type != "cpu":
        step_by_step = unrolled(problem, {**problem.parameters, "u": problem.u}, steps, compile_step)
        return {"a compiled step": step_by_step}
    problem_map, names = problem.map, list(problem.parameters)
    weights = tuple(problem.parameters.values())

    def step_of(u: Tensor, given: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
        return problem_map.step(u, dict(zip(names, given, strict=True)))

    def all_steps(z: Tensor, u: Tensor, *given: Tensor) -> Tensor:
        step = step_of(u, given)
        for _ in range(steps):
            z = step(z)
        return z

    def looped(z: Tensor, u: Tensor, limit: Tensor, *given: Tensor) -> Tensor:
        from torch._higher_order_ops import while_loop

        step = step_of(u, given)
        start = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, z: i < limit, lambda i, z: (i + 1, step(z)), (start, z))[1]

    one, other = (torch.compile(form, dynamic=False) for form in (all_steps, looped))
    limit = torch.tensor(steps)
    return {
        "all steps in one graph": lambda: one(problem.z0, problem.u, *weights),
        "while_loop": lambda: other(problem.z0, problem.u, limit, *weights),
    }


def compile_step(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """One evaluation of a map, compiled for its shape."""
    return torch.compile(step, dynamic=False)


def fastest(calls: Mapping[str, Callable[[], Any]]) -> tuple[str, Callable[[], Any]]:
    """The form with the shortest of a few calls, among those that compile."""
    best: tuple[float, str] | None = None
    failures = []
    for name, call in calls.items():
        try:
            call()
        except Exception as error:  # whatever inductor and the compiler may raise
            failures.append(f"{name}: {str(error).splitlines()[0][:160]}")
            continue
        for _ in range(_TRIALS):
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            best = min(best or (seconds, name), (seconds, name))
    if best is None:
        raise Unavailable(f"inductor failed: {'; '.join(failures)}")
    return best[1], calls[best[1]]


def _build(problem: Problem, which: str, steps: int) -> Runner:
    if shutil.which("g++") is None:
        raise Unavailable("inductor needs a C++ compiler, and there is no g++ on PATH")
    with torch.no_grad():
        name, call = fastest(forms(problem, steps))
    runner = without_gradients(call)
    runner.facts = {"steps_max": steps, "form": name}
    return runner


COMPILED = Contender("compiled", "the naive loop by torch.compile, in the faster of two forms", ("forward",), _build)
