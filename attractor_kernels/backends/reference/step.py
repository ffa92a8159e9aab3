"""One step of a solve in plain torch, on buffers a caller keeps: what the operator `anderson_step` means.

The same rules as loop.py and advance.py, stated for one step: everything that outlives it lies in `history` and
`control`. `history` is a ring of g = f(z) - z and of h = z + damping g, whose slot for step k is k modulo its length;
a row of `control` starts with status, steps and residual of the problem.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import stopping
from .advance import AUTO_PRICE, RESTART_FACTOR2
from .auto_choice import AutoState, choose
from .small_solve import small_solve

_PICARD, _AUTO = 0, 2

# Columns of `control`: the result, then what the next step needs, then the valid differences of each group.
_STATUS, _STEPS, _RESIDUAL = 0, 1, 2
_FIRST2, _BEST_R2, _BEST_F2, _BEST_STEP, _PREVIOUS_R2, _LEVEL = range(3, 9)
_MODE, _SINCE, _PICARD2, _ENTRY_R2, _ANDERSON2 = range(9, 14)
_GROUPS = 19


def anderson_step(
    z: Tensor,  # [P, G, N] in any shape
    fz: Tensor,
    out: Tensor,
    best: Tensor,
    history: Tensor,  # [P, G, 2, slots, at least N]
    control: Tensor,  # float64 [P, columns]
    active: Tensor,  # int64 [1]
    trace: Tensor | None,  # float32 [max_steps, P]
    solver: int,
    damping: float,
    ridge: float,
    rtol: float,
    atol: float,
    max_steps: int,
    min_steps: int,
    keep_best: bool,
) -> None:
    problems, groups, _, _slots, _ = history.shape
    entries = z.numel() // max(problems * groups, 1)
    grouped = (problems, groups, entries)
    out, best = out.view(grouped), best.view(grouped)
    work = z.dtype if z.dtype in (torch.float32, torch.float64) else torch.float32
    wide_z, wide_f = z.reshape(grouped).to(work), fz.reshape(grouped).to(work)
    g = wide_f - wide_z
    r2, f2 = _square(g), _square(wide_f)

    step = int(control[:, _STEPS].max()) + 1 if problems else 1
    if step == 1:
        control[:, _STATUS] = stopping.RUNNING
        control[:, _FIRST2] = control[:, _BEST_F2] = -1.0
        control[:, _LEVEL] = r2
        best.copy_(z.reshape(grouped))
    running = control[:, _STATUS] == stopping.RUNNING

    progress = stopping.Progress(problems, torch.float64, z.device)
    progress.first2, progress.best_r2 = control[:, _FIRST2], control[:, _BEST_R2]
    progress.best_f2, progress.best_step = control[:, _BEST_F2], control[:, _BEST_STEP]
    rule = stopping.Rule(rtol, atol, max_steps, min_steps, torch.finfo(z.dtype).eps)
    verdict, is_best = stopping.judge(progress, r2, f2, step, rule)
    relative = stopping.relative_residual(r2, f2)
    if trace is not None:
        trace[step - 1] = torch.where(running, relative, trace[step - 1])
    _set(best, running & is_best, z.reshape(grouped))

    ended = running & (verdict != stopping.RUNNING)
    failed = (verdict == stopping.DIVERGED) | (verdict == stopping.NONFINITE)
    return_best = ended & (failed | keep_best) & (progress.best_f2 >= 0)
    best_relative = stopping.relative_residual(progress.best_r2, progress.best_f2)
    state = {
        _STATUS: torch.where(ended, verdict, stopping.RUNNING).double(),
        _STEPS: torch.where(return_best, progress.best_step, step),
        _RESIDUAL: torch.where(return_best, best_relative, relative).double(),
        _FIRST2: progress.first2,
        _BEST_R2: progress.best_r2,
        _BEST_F2: progress.best_f2,
        _BEST_STEP: progress.best_step,
    }
    plain = wide_z + damping * g
    proposed = plain
    if solver != _PICARD:
        proposed = _anderson(g, plain, r2, step, history, control, running, state, solver == _AUTO, ridge)
    out.copy_(z.reshape(grouped))
    _set(out, running & ~ended, proposed.to(z.dtype))
    _set(out, return_best, best)
    for column, value in state.items():
        control[:, column] = torch.where(running, value, control[:, column])
    active.fill_((running & ~ended).sum())


def _anderson(
    g: Tensor,  # [P, G, N]
    plain: Tensor,  # z + damping g
    r2: Tensor,  # [P]
    step: int,
    history: Tensor,
    control: Tensor,
    running: Tensor,  # [P]
    state: dict[int, Tensor],
    auto: bool,
    ridge: float,
) -> Tensor:
    """The next iterates, with the plain ones where nothing is mixed."""
    groups, slots, entries = history.shape[1], history.shape[3], g.shape[-1]
    ring_g, ring_h = history[:, :, 0, :, :entries], history[:, :, 1, :, :entries]
    slot, last = step % slots, (step - 1) % slots
    along = _dot(g, torch.where(running[:, None, None], ring_g[:, :, last].to(g.dtype), 0.0)) if step > 1 else r2
    _set(ring_g[:, :, slot], running, g.to(history.dtype))
    _set(ring_h[:, :, slot], running, plain.to(history.dtype))

    level = control[:, _LEVEL]
    restart = (r2 > RESTART_FACTOR2 * level) & (groups == 1)
    state[_LEVEL] = torch.where(restart, r2, torch.minimum(level, r2))
    mixes = ~restart & torch.full_like(restart, step > 1)
    if auto:
        choice = AutoState(r2)
        choice.mode, choice.since = control[:, _MODE].int(), control[:, _SINCE].int()
        choice.picard2, choice.entry_r2 = control[:, _PICARD2], control[:, _ENTRY_R2]
        choice.anderson2 = control[:, _ANDERSON2]
        previous_r2 = control[:, _PREVIOUS_R2] if step > 1 else r2
        mixes = mixes & choose(choice, step, r2, previous_r2, along, AUTO_PRICE, groups * entries)
        state |= {_MODE: choice.mode, _SINCE: choice.since, _PICARD2: choice.picard2}
        state |= {_ENTRY_R2: choice.entry_r2, _ANDERSON2: choice.anderson2}
    state[_PREVIOUS_R2] = r2

    counts = control[:, _GROUPS : _GROUPS + groups]  # [P, G]
    count = torch.where(mixes[:, None], (counts + 1).clamp(max=slots - 1), 0.0)
    # Differences from the oldest to the newest; slots never written are masked before they are used.
    order = [(step - slots + 1 + j) % slots for j in range(slots)]
    age = torch.arange(slots - 1, 0, -1, device=g.device)
    valid = age <= count[..., None]  # [P, G, slots - 1]
    dg, dh = (
        torch.where(valid[..., None], ring[:, :, order].to(g.dtype).diff(dim=2), 0.0) for ring in (ring_g, ring_h)
    )
    wide_dg = dg.double()
    rhs = (wide_dg @ g.double().unsqueeze(-1)).squeeze(-1)
    pivot_floor = 1e-13 if g.dtype == torch.float64 else 1e-7
    gamma, solved = small_solve(wide_dg @ wide_dg.mT, rhs, valid, ridge, pivot_floor)
    mixed = plain - (gamma.to(g.dtype).unsqueeze(-1) * dh).sum(2)
    accepted = solved & torch.isfinite(mixed.to(history.dtype)).all(-1)
    control[:, _GROUPS : _GROUPS + groups] = torch.where(running[:, None], torch.where(accepted, count, 0.0), counts)
    return torch.where(accepted.unsqueeze(-1), mixed, plain)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each problem [P]."""
    return (a.double() * b.double()).sum((1, 2))


def _square(a: Tensor) -> Tensor:
    return _dot(a, a)


def _set(target: Tensor, where: Tensor, value: Tensor) -> None:
    """target = value for the problems in `where` [P]."""
    target.copy_(torch.where(where[:, None, None], value, target))
