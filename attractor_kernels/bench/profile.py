"""One solve taken apart, by timing variants of it that each lack one thing.

The kernel runs as a whole, so a part is the difference of two solves that differ in that part alone:

    call        a solve of one step, less that step: the front door, packing the weights, reading and writing the state
    products    Picard with the identity as its activation, less call (residual norms are in it)
    activation  Picard with the real activation, less Picard with the identity
    mixing      the solver itself with every row held to the same number of steps, less Picard; the linear equations of
                Auto's Newton steps are here
    waiting     the solve itself, less the solver with all rows held to the mean number of steps: rows that take longer
                than others leave tiles and threads partly empty

All take the same number of row-steps (evaluations of f of one row). Differences of a few percent are the timer's.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import attractor_kernels as ak

from .cases import MAX_STEPS, RTOL, Case, Problem
from .contenders import SOLVERS, Unavailable, bound_cell, unrolled
from .counts import Calls, count
from .machine import facts_module
from .peers import FIXED_POINT_ITER
from .timing import measure


@dataclass
class Profile:
    """What `take_apart` found; seconds are per solve."""

    case: str
    solver: str
    precision: str
    backend: str
    seconds: float
    parts: dict[str, float]
    row_steps: int
    steps: dict[int, int]  # steps -> problems
    gflops: float  # of the products of all row-steps, over the whole solve
    gflops_products: float  # the same, over the part "products"
    gflops_mm: float  # torch.mm in the same run
    gbytes: float  # bytes that must move at least, over the whole solve
    gbytes_copy: float  # a copy in the same run
    calls: dict[str, Calls]
    plan: dict[str, Any] | None = field(default=None)

    @property
    def problems(self) -> int:
        return sum(self.steps.values())

    @property
    def slowest(self) -> int:
        return max(self.steps)

    @property
    def mean_steps(self) -> float:
        return self.row_steps / self.problems


def take_apart(case: Case, solver: str = "auto", precision: str = "full", budget: float = 6.0) -> Profile:
    """Profiles the solve of a case; `budget` is seconds of timing."""
    problem = Problem(case)
    bound, _ = bound_cell(problem, train=False)
    with torch.no_grad():
        _, info = solve(bound, problem, solver, precision)
    info.raise_if_failed()
    steps = Counter(info.steps.tolist())
    row_steps = sum(k * n for k, n in steps.items())
    even = math.ceil(row_steps / case.batch)

    calls = _variants(problem, solver, precision, even)
    timings = {name: timing.median for name, timing in measure(calls, budget).items()}
    parts = split(timings, even, row_steps / case.batch)
    flops = row_steps * problem.flops_per_row_step
    moved = problem.moved_bytes
    return Profile(
        case=str(case),
        solver=solver,
        precision=precision,
        backend=info.backend,
        seconds=timings["solve"],
        parts=parts,
        row_steps=row_steps,
        steps=dict(sorted(steps.items())),
        gflops=flops / timings["solve"] / 1e9,
        gflops_products=flops / max(parts["products"], 1e-12) / 1e9 if "products" in parts else float("nan"),
        gflops_mm=case.batch * problem.flops_per_row_step / timings["mm"] / 1e9,
        gbytes=moved / timings["solve"] / 1e9,
        gbytes_copy=2 * problem.u.numel() * problem.u.element_size() / timings["copy"] / 1e9,
        calls=_counts(problem, calls["solve"], max(steps)),
        plan=_plan(case, solver),
    )


def solve(bound: Any, problem: Problem, solver: str, precision: str, steps: int | None = None) -> Any:
    """The public solve; with `steps`, exactly so many for every row."""
    if steps is None:
        options: dict[str, Any] = dict(rtol=RTOL, max_steps=MAX_STEPS)
    else:
        options = dict(rtol=0.0, max_steps=steps, min_steps=steps)
    return ak.fixed_point(bound, problem.z0, solver=SOLVERS[solver], precision=precision, **options)


def _variants(problem: Problem, solver: str, precision: str, even: int) -> dict[str, Callable[[], Any]]:
    bound, _ = bound_cell(problem, train=False)

    def quiet(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return call()

        return run

    variants: dict[str, Callable[[], Any]] = {
        "solve": lambda: solve(bound, problem, solver, precision),
        "even": lambda: solve(bound, problem, solver, precision, even),
        "picard": lambda: solve(bound, problem, "picard", precision, even),
        "one": lambda: solve(bound, problem, "picard", precision, 1),
        "mm": problem.map.products(problem.u, problem.parameters),
    }
    linear = problem.map.linear_cell(problem.parameters)
    if linear is not None:
        linear_bound = linear.requires_grad_(False).bind_injection(problem.u)
        variants["identity"] = lambda: solve(linear_bound, problem, "picard", precision, even)
    target = torch.empty_like(problem.u)
    variants["copy"] = lambda: target.copy_(problem.u)
    return {name: quiet(call) for name, call in variants.items()}


def split(timings: dict[str, float], even: int, mean: float) -> dict[str, float]:
    """Parts in seconds from the variants' times.

    even: steps of every row in the variants that hold them; mean: mean steps per row of the solve, at most `even`.
    """
    picard = timings["picard"]
    step = (picard - timings["one"]) / (even - 1) if even > 1 else 0.0
    call = max(timings["one"] - step, 0.0)
    scale = mean / even
    parts = {"call": call}
    if "identity" in timings:
        parts["products"] = (timings["identity"] - call) * scale
        parts["activation"] = (picard - timings["identity"]) * scale
    else:
        parts["products and activation"] = (picard - call) * scale
    parts["mixing"] = (timings["even"] - picard) * scale
    parts["waiting"] = timings["solve"] - sum(parts.values())
    return parts


def _counts(problem: Problem, call: Callable[[], Any], slowest: int) -> dict[str, Calls]:
    naive = unrolled(problem, {**problem.parameters, "u": problem.u}, slowest)
    with torch.no_grad():
        found = {"ours": count(call), "naive": count(naive)}
        with contextlib.suppress(Unavailable):
            found["torchdeq fpi"] = count(FIXED_POINT_ITER.build(problem, "forward", slowest).call)
    return found


def _plan(case: Case, solver: str) -> dict[str, Any] | None:
    return (
        tile_plan(case.batch, case.dim, solver, 8 if case.dtype == "float64" else 4) if case.cell == "affine" else None
    )


def tile_plan(batch: int, dim: int, solver: str = "auto", element_size: int = 4) -> dict[str, Any] | None:
    """How the compiled kernels would cut an affine solve into tiles, or None where they are not built."""
    facts = facts_module()
    if facts is None:
        return None
    options: Any = SOLVERS[solver]
    history = getattr(options, "history", 0)
    return dict(facts.plan_affine(batch, dim, options.code, history, element_size, torch.get_num_threads()))
