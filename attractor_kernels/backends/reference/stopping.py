"""When a problem ends, and with which status: csrc/common/stopping.h for a batch of problems at once.

All problems start together, so one step count serves every problem that still runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CONVERGED, MAX_STEPS, DIVERGED, NONFINITE, STAGNATED, RUNNING = 0, 1, 2, 3, 4, 255

DIVERGENCE_FACTOR = 1e4  # a residual this many times the first one ends the problem
STAGNATION_STEPS = 10  # no new lowest residual for this many steps ...
STAGNATION_EPS = 8.0  # ... while the lowest is within this many units of the state's rounding


@dataclass(frozen=True)
class Rule:
    rtol: float
    atol: float
    max_steps: int
    min_steps: int
    eps: float  # rounding unit of the state


class Progress:
    """The first and the best residual of each problem; all [P]."""

    def __init__(self, problems: int, dtype: torch.dtype, device: torch.device) -> None:
        self.first2 = torch.full((problems,), -1.0, dtype=dtype, device=device)
        self.best_r2 = torch.zeros(problems, dtype=dtype, device=device)
        self.best_f2 = torch.full((problems,), -1.0, dtype=dtype, device=device)  # negative before a finite step
        self.best_step = torch.zeros(problems, dtype=torch.int32, device=device)


def judge(p: Progress, r2: Tensor, f2: Tensor, step: int, rule: Rule) -> tuple[Tensor, Tensor]:
    """Counts one evaluation with |f(z) - z|^2 = r2 and |f(z)|^2 = f2 [P].

    Returns the status [P], RUNNING where the problem goes on, and where [P] this iterate is the best so far.
    """
    finite = torch.isfinite(r2) & torch.isfinite(f2)
    p.first2 = torch.where(finite & (p.first2 < 0), r2, p.first2)
    best = finite & ((p.best_f2 < 0) | (r2 * p.best_f2 < p.best_r2 * f2))
    p.best_r2 = torch.where(best, r2, p.best_r2)
    p.best_f2 = torch.where(best, f2, p.best_f2)
    p.best_step = torch.where(best, step, p.best_step)

    status = torch.full(r2.shape, RUNNING, dtype=torch.uint8, device=r2.device)
    # From the weakest claim to the strongest: a later line overrules an earlier one.
    if step >= rule.min_steps:
        floor2 = (STAGNATION_EPS * rule.eps) ** 2
        stuck = (step - p.best_step >= STAGNATION_STEPS) & (p.best_r2 <= floor2 * p.best_f2)
        status = torch.where(stuck, STAGNATED, status)
    if step >= rule.max_steps:
        status = torch.full_like(status, MAX_STEPS)
    status = torch.where(r2 > DIVERGENCE_FACTOR**2 * p.first2, DIVERGED, status)
    if step >= rule.min_steps:
        status = torch.where(within_tolerance(r2, f2, rule), CONVERGED, status)
    status = torch.where(finite, status, NONFINITE)
    return status, best


def within_tolerance(r2: Tensor, f2: Tensor, rule: Rule) -> Tensor:
    """|g| <= atol + rtol |f|, from squares."""
    if rule.atol == 0:
        return r2 <= rule.rtol * rule.rtol * f2
    return r2 <= (rule.atol + rule.rtol * f2.sqrt()) ** 2


def relative_residual(r2: Tensor, f2: Tensor) -> Tensor:
    """|g| / |f|; 0 / 0 is 0: a map whose fixed point is the origin, at it."""
    return torch.where(r2 == 0, 0.0, r2.sqrt() / f2.sqrt()).float()
