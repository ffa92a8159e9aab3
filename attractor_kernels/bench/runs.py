"""A run of the benchmark: which cases meet which contenders, the gate, and only then the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import attractor_kernels as ak

from . import machine
from .callables import CALLABLES, run_callable
from .cases import CELLS, DTYPES, FAMILIES, PASSES, RTOL, SHAPES, Case, Problem
from .contenders import PRECISIONS, Contender, ours, picard_steps
from .gate import TOLERANCE
from .gating import admit, time_entries
from .peers import BASELINES
from .results import Entry, Report, Row
from .timing import Stopwatch

# Beside the headline cell and dtype everything is compared; elsewhere what the gain means is read off these two.
SHORT_BASELINES = ("naive", "floor")
HEADLINE = ("affine", "float32")


def headline(case: Case) -> bool:
    return (case.cell, case.dtype) == HEADLINE


@dataclass(frozen=True)
class Plan:
    """What to measure.

    baselines None: all of them for the headline cell and dtype, naive and floor elsewhere. passes None: likewise, all
    of them and, elsewhere, all but the backward solve alone.
    """

    shapes: Sequence[tuple[int, int]] = SHAPES
    families: Sequence[str] = FAMILIES
    cells: Sequence[str] = CELLS
    dtypes: Sequence[str] = tuple(DTYPES)
    passes: Sequence[str] | None = None
    solvers: Sequence[str] = ("auto",)
    precisions: Sequence[str] = PRECISIONS
    baselines: Sequence[str] | None = None
    seconds: float = 2.5  # of timing per case and pass with all baselines
    min_repeats: int = 5
    callables: bool = False  # also maps the package does not know

    def cases(self) -> list[tuple[Case, str]]:
        """Cases and passes in the order they run."""
        found = []
        for cell in self.cells:
            for dtype in self.dtypes:
                for family in self.families:
                    for batch, dim in self.shapes:
                        case = Case(cell, family, batch, dim, dtype)
                        found += [(case, which) for which in self.passes_of(case)]
        return found

    def passes_of(self, case: Case) -> Sequence[str]:
        if self.passes is not None:
            return self.passes
        return PASSES if headline(case) else tuple(which for which in PASSES if which != "backward")

    def contenders(self, case: Case, which: str) -> list[Contender]:
        # Products in few bits are for float32 data; at float64 there is nothing to mix.
        precisions = self.precisions if case.dtype == "float32" else ("full",)
        mine = [ours(solver, precision) for solver in self.solvers for precision in precisions]
        names = self.baselines
        if names is None:
            names = tuple(BASELINES) if headline(case) else SHORT_BASELINES
        return [c for c in (*mine, *(BASELINES[name] for name in names)) if which in c.passes]

    def budget(self, case: Case) -> float:
        return self.seconds if headline(case) else self.seconds / 2.5


@dataclass
class Watcher:
    """What a run tells whoever watches it."""

    start: Callable[[int], None] = field(default=lambda total: None)
    doing: Callable[[str], None] = field(default=lambda what: None)
    done: Callable[[], None] = field(default=lambda: None)


def run_case(
    problem: Problem,
    which: str,
    contenders: Sequence[Contender],
    budget: float,
    min_repeats: int = 5,
    *,
    stopwatch: Stopwatch | None = None,
    counted_by: str = "auto",
) -> Row:
    """Gates and times the contenders of one case.

    stopwatch: None: the host's clock. counted_by: backend of the Picard solve that says how many steps others take.
    """
    case = problem.case
    row = Row(case.cell, case.family, case.batch, case.dim, case.dtype, which, picard_steps=0)
    try:
        row.picard_steps = steps = picard_steps(problem, counted_by)
    except ak.ConvergenceError as error:
        why = f"nobody was timed: the Picard solve that counts the steps failed: {error}"
        row.entries = {c.name: Entry(c.name, c.ours, why=why) for c in contenders}
        return row
    runners = {contender.name: admit(contender, problem, which, steps, row) for contender in contenders}
    time_entries(row, runners, budget, min_repeats, stopwatch)
    return row


def run(plan: Plan, watcher: Watcher | None = None) -> Report:
    """Runs a plan."""
    watcher = watcher or Watcher()
    cases = plan.cases()
    report = new_report({"rtol": RTOL, "gate": TOLERANCE, "seconds_per_case": plan.seconds})
    loops = list(CALLABLES.values()) if plan.callables and "forward" in (plan.passes or PASSES) else []
    watcher.start(len(cases) + len(loops))
    problem: Problem | None = None
    try:
        for case, which in cases:
            watcher.doing(f"{case}, {which}")
            if problem is None or problem.case != case:
                problem = Problem(case)
            contenders = plan.contenders(case, which)
            report.rows.append(run_case(problem, which, contenders, plan.budget(case), plan.min_repeats))
            watcher.done()
        for loop in loops:
            watcher.doing(str(loop))
            # Beside a large map a step is a tenth of what is timed: more of them, or it is lost in the scatter.
            report.rows.append(run_callable(loop, 4 * plan.seconds, plan.min_repeats))
            watcher.done()
    except KeyboardInterrupt:
        # What there is, is worth having; that it is not all of it has to be seen.
        report.settings["interrupted"] = True
    return report


def new_report(settings: dict[str, object]) -> Report:
    return Report(machine.today(), machine.commit(), machine.machine(), machine.versions(), settings)
