"""The one loop: evaluate f, judge every problem, advance those that go on.

DESIGN.md section 4 in torch operations. The host waits for the device once a step, to stop early.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...options import Anderson, Auto, Broyden, Picard, Solver
from . import stopping
from .advance import AndersonMethod, BroydenMethod, Method, PicardMethod, dot


class Solved(NamedTuple):
    z: Tensor  # [P, G, N], in z0's dtype
    steps: Tensor  # int32 [P]
    residual: Tensor  # float32 [P]
    status: Tensor  # uint8 [P]
    trace: Tensor | None  # float32 [max_steps, P]


def solve(
    f: Callable[[Tensor], Tensor],  # [P, G, N] -> [P, G, N]
    z0: Tensor,  # [P, G, N]
    solver: Solver,
    *,
    rtol: float,
    atol: float = 0.0,
    max_steps: int,
    min_steps: int = 0,
    keep_best: bool = False,
    trace: bool = False,
    constant_until: Tensor | None = None,  # int [P]: updates up to this one carry no gradient
) -> Solved:
    """Solves z = f(z) for each of the P problems; differentiable where grad mode is on."""
    problems = z0.shape[0]
    work = z0.dtype if z0.dtype in (torch.float32, torch.float64) else torch.float32
    # Norms are formed in float64 where the device has it, so squares neither overflow nor vanish.
    wide = torch.float32 if z0.device.type == "mps" else torch.float64
    rule = stopping.Rule(rtol, atol, max_steps, min_steps, torch.finfo(z0.dtype).eps)
    progress = stopping.Progress(problems, wide, z0.device)
    method = _method(solver, work)
    running = torch.ones(problems, dtype=torch.bool, device=z0.device)
    steps = torch.zeros(problems, dtype=torch.int32, device=z0.device)
    residual = torch.zeros(problems, dtype=torch.float32, device=z0.device)
    status = torch.full((problems,), stopping.CONVERGED, dtype=torch.uint8, device=z0.device)
    history = torch.full((max_steps if trace else 0, problems), torch.nan, device=z0.device)

    z = best_z = z0.clone(memory_format=torch.contiguous_format)
    for step in range(1, max_steps + 1):
        if problems == 0:
            break
        z, fz = _evaluate(f, z, step, constant_until)
        wide_z, wide_f = z.to(work), fz.to(work)
        g = wide_f - wide_z
        r2 = dot(g.detach(), g.detach(), wide).sum(-1)
        f2 = dot(wide_f.detach(), wide_f.detach(), wide).sum(-1)
        verdict, best = stopping.judge(progress, r2, f2, step, rule)
        relative = stopping.relative_residual(r2, f2)
        if trace:
            history[step - 1] = torch.where(running, relative, history[step - 1])

        ended = running & (verdict != stopping.RUNNING)
        best_z = _select(running & best, z, best_z)
        failed = (verdict == stopping.DIVERGED) | (verdict == stopping.NONFINITE)
        return_best = (failed | keep_best) & (progress.best_f2 >= 0)  # there has been a finite evaluation
        best_relative = stopping.relative_residual(progress.best_r2, progress.best_f2)
        # A problem without any keeps z0, its first residual and one step.
        steps = torch.where(ended, torch.where(return_best, progress.best_step, step), steps)
        residual = torch.where(ended, torch.where(return_best, best_relative, relative), residual)
        status = torch.where(ended, verdict, status)
        running = running & ~ended
        z = _select(ended & return_best, best_z, z)
        if step == max_steps or not bool(running.any()):
            break
        z = _select(running, method.advance(wide_z, g, r2, step).to(z0.dtype), z)
    return Solved(z, steps, residual, status, history if trace else None)


def _method(solver: Solver, work: torch.dtype) -> Method:
    pivot_floor = 1e-13 if work == torch.float64 else 1e-7
    if isinstance(solver, Picard):
        return PicardMethod(solver.damping)
    if isinstance(solver, Broyden):
        return BroydenMethod(solver.history, solver.damping)
    assert isinstance(solver, (Anderson, Auto))
    return AndersonMethod(solver.history, solver.damping, solver.ridge, isinstance(solver, Auto), pivot_floor)


def _evaluate(
    f: Callable[[Tensor], Tensor], z: Tensor, step: int, constant_until: Tensor | None
) -> tuple[Tensor, Tensor]:
    if constant_until is None:
        return z, f(z)
    attached = step > constant_until  # [P]
    if not bool(attached.any()):
        with torch.no_grad():
            return z, f(z)
    z = _select(attached, z, z.detach())
    fz = f(z)
    return z, _select(attached, fz, fz.detach())


def _select(where: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a for the problems in `where` [P], else b; never by multiplication, so NaN stays where it is."""
    return torch.where(where[:, None, None], a, b)
