"""The cases of `attractor-kernels bench` as a pytest-benchmark suite: one group per case and pass.

    pytest benchmarks/test_solves.py --benchmark-group-by=group

Each result passes the same correctness gate before it is timed. `attractor-kernels bench` interleaves its contenders
and is what ratios are quoted from; this suite is for watching one contender over time (--benchmark-autosave).
"""

from __future__ import annotations

import functools

import pytest

from attractor_kernels.bench.cases import CELLS, FAMILIES, PASSES, SHAPES, Case, Problem
from attractor_kernels.bench.contenders import FLOOR, NAIVE, ours, picard_steps
from attractor_kernels.bench.gating import admit
from attractor_kernels.bench.peers import FIXED_POINT_ITER
from attractor_kernels.bench.results import Row

CONTENDERS = {c.name: c for c in (ours("auto", "mixed"), ours("auto", "full"), NAIVE, FIXED_POINT_ITER, FLOOR)}
CASES = [Case("affine", family, *shape) for family in FAMILIES for shape in SHAPES]
CASES += [Case(cell, family, 1024, 256) for cell in CELLS[1:] for family in FAMILIES]
CASES += [Case("affine", family, 1024, 256, "float64") for family in FAMILIES]


@functools.lru_cache(maxsize=1)
def prepared(case: Case) -> tuple[Problem, int]:
    problem = Problem(case)
    return problem, picard_steps(problem)


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case).replace(" ", "-"))
def test_solve(benchmark, case, which, name):
    contender = CONTENDERS[name]
    if which not in contender.passes:
        pytest.skip(f"{name} has no {which} pass")
    problem, steps = prepared(case)
    row = Row(case.cell, case.family, case.batch, case.dim, case.dtype, which, steps)
    runner = admit(contender, problem, which, steps, row)
    entry = row.entries[name]
    if runner is None:
        if contender.ours or (entry.why or "").startswith("wrong"):
            pytest.fail(f"no speed for {name}: {entry.why}")
        pytest.skip(entry.why or "")
    benchmark.group = f"{case}, {which}"
    benchmark.extra_info.update(error=entry.error, picard_steps=steps, **runner.facts)
    benchmark(runner.call)
