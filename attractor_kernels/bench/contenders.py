"""What a contender is, and those of this package and of plain torch: ours, naive unrolling, compiled, the floor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import attractor_kernels as ak
from attractor_kernels import options

from .cases import MAX_STEPS, RTOL, Problem
from .gate import LOOSE_TOLERANCE, TOLERANCE


class Unavailable(Exception):
    """This contender cannot run here, and why."""


@dataclass
class Runner:
    """A contender made ready for one problem.

    Attributes:
        call: what is timed.
        results: turns what `call` returned into tensors by name, for the gate; None: there is nothing to check.
        facts: what else is worth recording, such as its steps.
    """

    call: Callable[[], Any]
    results: Callable[[Any], Mapping[str, Tensor]] | None
    facts: dict[str, Any] = field(default_factory=dict)
    hint: float | None = None  # seconds of its first call after it was made ready


Build = Callable[[Problem, str, int], Runner]  # problem, pass, steps of the slowest Picard row


@dataclass(frozen=True)
class Contender:
    """Someone to time: a name, what it is, the passes it knows, and how it is made ready."""

    name: str
    about: str
    passes: tuple[str, ...]
    build: Build
    ours: bool = False
    tolerances: tuple[float, float] = (TOLERANCE, TOLERANCE)  # of the gate: for the state, for gradients


def named(names: list[str], forward: bool) -> Callable[[Any], dict[str, Tensor]]:
    """Results of a call that returns (z, gradients) or gradients alone."""

    def results(returned: Any) -> dict[str, Tensor]:
        if not forward:
            return dict(zip(names, returned, strict=True))
        z, gradients = returned
        return {"z": z, **dict(zip(names, gradients, strict=True))}

    return results


def differentiable(solve: Callable[[], Tensor], leaves: dict[str, Tensor], cotangent: Tensor, which: str) -> Runner:
    """The runner of a pass with gradients of every leaf, for any solve that autograd sees through."""
    wanted = list(leaves.values())
    if which == "backward":
        z = solve()
        return Runner(
            lambda: torch.autograd.grad(z, wanted, cotangent, retain_graph=True), named(list(leaves), forward=False)
        )

    def both() -> tuple[Tensor, tuple[Tensor, ...]]:
        z = solve()
        return z, torch.autograd.grad(z, wanted, cotangent)

    return Runner(both, named(list(leaves), forward=True))


def without_gradients(solve: Callable[[], Tensor]) -> Runner:
    def call() -> Tensor:
        with torch.no_grad():
            return solve()

    return Runner(call, lambda z: {"z": z})


SOLVERS: dict[str, options.Solver] = {"auto": ak.Auto(), "picard": ak.Picard(), "anderson": ak.Anderson()}
PRECISIONS = ("mixed", "full")


def bound_cell(problem: Problem, train: bool) -> tuple[Any, dict[str, Tensor]]:
    """The problem's cell, bound to its injection, and the leaves of its gradients."""
    cell, parameters = problem.cell
    for parameter in cell.parameters():
        parameter.requires_grad_(train)
    u = problem.u.detach().clone().requires_grad_(train)
    return cell.bind_injection(u), {**parameters, "u": u}


def another_weight(leaves: dict[str, Tensor]) -> Callable[[], object]:
    """Changes a weight by a millionth, there and back: in training nothing is kept from one call to the next."""
    entry = next(iter(leaves.values())).detach().view(-1)[:1]
    factors = itertools.cycle((1 + 2**-20, 1 / (1 + 2**-20)))
    return lambda: entry.mul_(next(factors))


def picard_steps(problem: Problem, backend: str = "auto") -> int:
    """Steps of the slowest row of a Picard solve at the tolerance of the cases: what naive unrolling must take."""
    bound, _ = bound_cell(problem, train=False)
    with torch.no_grad():
        _, info = ak.fixed_point(
            bound,
            problem.z0,
            solver=ak.Picard(),
            rtol=RTOL,
            max_steps=MAX_STEPS,
            precision="full",
            backend=backend,
        )
    info.raise_if_failed()
    return int(info.steps.max())


def ours(solver: str, precision: str, backend: str = "auto") -> Contender:
    """This package through its front door, `ak.fixed_point`; a backend asked for by name is part of the name."""

    def build(problem: Problem, which: str, steps: int) -> Runner:
        bound, leaves = bound_cell(problem, train=which != "forward")
        last: list[Any] = [None]
        change = another_weight(leaves) if which == "forward+backward" else lambda: None

        def solve() -> Tensor:
            change()
            z, last[0] = ak.fixed_point(
                bound,
                problem.z0,
                solver=SOLVERS[solver],
                rtol=RTOL,
                max_steps=MAX_STEPS,
                precision=precision,
                backend=backend,
            )
            return z

        runner = (
            without_gradients(solve) if which == "forward" else differentiable(solve, leaves, problem.cotangent, which)
        )
        try:
            runner.call()
        except ValueError as error:
            if backend == "auto":
                raise
            raise Unavailable(str(error)) from error
        info = last[0]
        try:
            info.raise_if_failed()
        except ak.ConvergenceError as error:
            raise Unavailable(str(error)) from error
        taken = info.adjoint if which == "backward" and info.adjoint is not None else info
        runner.facts = {
            "steps_mean": float(taken.steps.float().mean()),
            "steps_max": int(taken.steps.max()),
            "backend": info.backend,
        }
        return runner

    return Contender(
        name=f"{solver} {precision}" if backend == "auto" else f"{solver} {precision} {backend}",
        about=f"ak.fixed_point, solver {solver}, precision {precision}, backend {backend}",
        passes=("forward", "backward", "forward+backward"),
        build=build,
        ours=True,
    )


def unrolled(
    problem: Problem, leaves: Mapping[str, Tensor], steps: int, wrap: Callable[[Any], Any] | None = None
) -> Callable[[], Tensor]:
    """`steps` evaluations of the map, one after the other; wrap: what is made of the map first."""
    step = problem.map.step(leaves["u"], {name: leaf for name, leaf in leaves.items() if name != "u"})
    if wrap is not None:
        step = wrap(step)
    z0 = problem.z0

    def solve() -> Tensor:
        z = z0
        for _ in range(steps):
            z = step(z)
        return z

    return solve


def _build_naive(problem: Problem, which: str, steps: int) -> Runner:
    if which == "forward":
        runner = without_gradients(unrolled(problem, {**problem.parameters, "u": problem.u}, steps))
    else:
        leaves = problem.leaves()
        runner = differentiable(unrolled(problem, leaves, steps), leaves, problem.cotangent, which)
    runner.facts = {"steps_max": steps}
    return runner


def _build_floor(problem: Problem, which: str, steps: int) -> Runner:
    product = problem.map.products(problem.u, problem.parameters)

    def call() -> None:
        with torch.no_grad():
            for _ in range(steps):
                product()

    return Runner(call, None, {"steps_max": steps})


NAIVE = Contender(
    "naive",
    "as many evaluations of the map in eager torch as the slowest row of a Picard solve takes",
    ("forward", "backward", "forward+backward"),
    _build_naive,
    tolerances=(TOLERANCE, LOOSE_TOLERANCE),
)
FLOOR = Contender("floor", "the products of the naive loop alone, by torch.mm", ("forward",), _build_floor)
