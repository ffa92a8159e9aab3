"""Maps the package does not know: what a step of the loop costs beside the map itself.

small: states of 16 x 32, 8 problems, where the map is nothing and the loop is all. large: states of 128 x 256, 16
problems, where the map is nearly all and the loop's share is what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import attractor_kernels as ak

from .cases import family_matrix
from .contenders import Contender, Runner, Unavailable, without_gradients
from .gate import LOOSE_TOLERANCE
from .gating import admit, time_entries
from .peers import require_torchdeq
from .results import Row
from .timing import Stopwatch


@dataclass(frozen=True)
class CallableCase:
    """A two-layer net on every one of `tokens` vectors of a state, iterated a fixed number of Anderson steps."""

    name: str
    batch: int
    tokens: int
    width: int
    hidden: int
    steps: int

    def __str__(self) -> str:
        return f"callable {self.name} {self.batch}x{self.tokens}x{self.width}, {self.steps} Anderson steps"


CALLABLES = {
    "small": CallableCase("small", batch=8, tokens=16, width=32, hidden=64, steps=40),
    "large": CallableCase("large", batch=16, tokens=128, width=256, hidden=1024, steps=20),
}


class CallableProblem:
    """The tensors of a case, and its right answer."""

    def __init__(self, case: CallableCase) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(case.width)
        w1, _ = torch.linalg.qr(torch.randn(case.hidden, case.width, generator=generator, dtype=torch.float64))
        w2 = family_matrix("sym", case.width) @ w1.T
        self.w1, self.w2 = w1.float(), w2.float()  # [hidden, width], [width, hidden]
        shape = (case.batch, case.tokens, case.width)
        self.x = 0.3 * torch.randn(shape, generator=generator)
        self.z0 = torch.zeros(shape)

    def step(self, z: Tensor) -> Tensor:
        return torch.nn.functional.linear(torch.tanh(torch.nn.functional.linear(z + self.x, self.w1)), self.w2)

    @cached_property
    def solution(self) -> Tensor:
        x, w1, w2 = self.x.double(), self.w1.double(), self.w2.double()
        z = self.z0.double()
        for _ in range(150):  # contracts by 0.9
            z = torch.tanh((z + x) @ w1.T) @ w2.T
        return z

    def expected(self, which: str) -> dict[str, Tensor]:
        return {"z": self.solution.flatten(1)}


def _flat(z: Tensor) -> dict[str, Tensor]:
    return {"z": z.flatten(1)}


def _ours(problem: Any, which: str, steps: int) -> Runner:
    # A tolerance of 0 and as many steps at least as at most: everybody takes the same number.
    options: dict[str, Any] = dict(solver=ak.Anderson(), rtol=0.0, max_steps=steps, min_steps=steps)
    with torch.no_grad():
        _, info = ak.fixed_point(problem.step, problem.z0, **options)
    if int(info.steps.min()) != steps:
        raise Unavailable(f"took {int(info.steps.min())} steps where {steps} were asked for")
    runner = without_gradients(lambda: ak.fixed_point(problem.step, problem.z0, **options)[0])
    return Runner(runner.call, _flat, {"steps_mean": float(steps), "steps_max": steps, "backend": info.backend})


def _torchdeq(problem: Any, which: str, steps: int) -> Runner:
    solver = require_torchdeq().solver.get_solver("anderson")
    # history 6 columns of states are 5 differences, as in ours
    runner = without_gradients(lambda: solver(problem.step, problem.z0, max_iter=steps, tol=0.0, stop_mode="rel")[0])
    return Runner(runner.call, _flat, {"steps_max": steps})


def map_alone(problem: Any, which: str, steps: int) -> Runner:
    def call() -> Tensor:
        z = problem.z0
        with torch.no_grad():
            for _ in range(steps):
                z = problem.step(z)
        return z

    return Runner(call, None, {"steps_max": steps})


CONTENDERS: Sequence[Contender] = (
    Contender("anderson", "ak.fixed_point of a plain callable", ("forward",), _ours, ours=True),
    Contender(
        "torchdeq anderson",
        "torchdeq's anderson, as many steps",
        ("forward",),
        _torchdeq,
        tolerances=(LOOSE_TOLERANCE, LOOSE_TOLERANCE),
    ),
    Contender("floor", "the map alone, as many times", ("forward",), map_alone),
)


def run_callable(
    case: CallableCase,
    budget: float,
    min_repeats: int = 5,
    *,
    problem: Any = None,
    contenders: Sequence[Contender] = CONTENDERS,
    stopwatch: Stopwatch | None = None,
) -> Row:
    """Gates and times one case; problem: what is solved, None: the case's own."""
    problem = CallableProblem(case) if problem is None else problem
    dtype = str(problem.z0.dtype).removeprefix("torch.")
    row = Row("callable", case.name, case.batch, case.tokens * case.width, dtype, "forward", case.steps)
    runners = {c.name: admit(c, problem, "forward", case.steps, row) for c in contenders}
    time_entries(row, runners, budget, min_repeats, stopwatch)
    return row
