"""Section `cells`: a whole solve of a known map, every backend side by side, against other ways to do it."""

from __future__ import annotations

from typing import Any

from attractor_kernels.bench.cases import Case, Problem
from attractor_kernels.bench.compiled import COMPILED
from attractor_kernels.bench.contenders import NAIVE, Contender, ours
from attractor_kernels.bench.graphed import graphed
from attractor_kernels.bench.peers import ANDERSON, FIXED_POINT_ITER, JAX
from attractor_kernels.bench.results import Row
from attractor_kernels.bench.runs import run_case

from .context import Cases, Context, Result
from .device import Device
from .floors import Ceilings, solve_floor
from .sizes import Solve


def cases(context: Context) -> Cases:
    """One a shape."""
    for solve in context.sizes.cells:
        yield str(solve), lambda solve=solve: run_solve(context, solve)


def rivals(device: Device) -> dict[str, Contender]:
    """Everybody else, by name."""
    found = (
        NAIVE,
        COMPILED,
        graphed(device.capture),
        graphed(device.capture, device.compile_step),
        FIXED_POINT_ITER,
        ANDERSON,
        JAX,
    )
    return {contender.name: contender for contender in found}


def run_solve(context: Context, solve: Solve) -> Result:
    """One case: checked, timed, and each of ours held against its floor."""
    device, sizes = context.device, context.sizes
    problem = Problem(Case(solve.cell, solve.family, solve.batch, solve.dim), device=device.where)
    mine = [
        ours(solver, precision, backend)
        for backend in device.backends
        for solver in solve.solvers
        for precision in solve.precisions
    ]
    others = rivals(device)
    chosen = [*mine, *(others[name] for name in solve.rivals)]
    contenders = [contender for contender in chosen if solve.which in contender.passes]
    row = run_case(
        problem,
        solve.which,
        contenders,
        sizes.seconds,
        sizes.repeats,
        stopwatch=device.stopwatch,
        counted_by="reference",
    )
    if solve.which != "forward+backward":  # whose parts have a floor each
        add_floors(row, problem, Ceilings.of(context.earlier("ceilings")))
    return {"rows": [row.to_json()], "problems": wrong(row)}


def add_floors(row: Row, problem: Problem, ceilings: Ceilings) -> None:
    """Puts the floor of the steps that were taken beside each of our times."""
    for entry in row.entries.values():
        if entry.ours and "steps_mean" in entry.facts:
            precision = entry.name.split()[1]
            row_steps = entry.facts["steps_mean"] * row.batch
            entry.facts |= solve_floor(problem, row_steps, precision, ceilings).facts()


def wrong(row: Row) -> list[str]:
    """What of ours has no speed although it ran."""
    return [f"{entry.name}: {entry.why}" for entry in row.entries.values() if entry.ours and _failed(entry)]


def _failed(entry: Any) -> bool:
    # A backend that has no kernel for the case says "cannot"; that is known, and no failure.
    return entry.why is not None and "cannot run" not in entry.why
