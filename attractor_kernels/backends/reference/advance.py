"""What each solver does between two evaluations of f: from z and f(z) to the next iterate.

States are viewed as [P, G, N]: P problems of G mixing groups of N entries. Nothing is written in place, so a solve
can be differentiated (gradient=Unrolled()).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .auto_choice import AutoState, choose
from .small_solve import small_solve

RESTART_FACTOR2 = 100.0  # |g|^2 this many times the lowest since the last restart clears a problem's history
AUTO_PRICE = 1.25  # an Anderson step's cost over a Picard step's
BROYDEN_FLOOR = 1e-7  # smallest denominator of an update, relative to the norms of its factors


class Method(Protocol):
    def advance(self, z: Tensor, g: Tensor, r2: Tensor, step: int) -> Tensor:
        """z, g [P, G, N] in the working dtype, r2 = |g|^2 [P]; returns the next iterate [P, G, N]."""


class PicardMethod:
    def __init__(self, damping: float) -> None:
        self.damping = damping

    def advance(self, z: Tensor, g: Tensor, r2: Tensor, step: int) -> Tensor:
        return z + self.damping * g


class AndersonMethod:
    """Anderson acceleration per mixing group; with `auto`, only for the problems and steps where it pays."""

    def __init__(self, history: int, damping: float, ridge: float, auto: bool, pivot_floor: float) -> None:
        self.history, self.damping, self.ridge, self.auto = history, damping, ridge, auto
        self.pivot_floor = pivot_floor
        # From the oldest to the newest, at most `history` of each. valid: [P, G], pushed since the last clear.
        self.dg: list[Tensor] = []
        self.dh: list[Tensor] = []
        self.valid: list[Tensor] = []
        self.gram: list[list[Tensor]] = []  # gram[i][j] = <dg_i, dg_j> for j <= i, [P, G]
        self.previous: tuple[Tensor, Tensor, Tensor] | None = None  # z, g, |g|^2 of the last step
        self.choice: AutoState | None = None

    def advance(self, z: Tensor, g: Tensor, r2: Tensor, step: int) -> Tensor:
        plain = z + self.damping * g
        if self.previous is None:
            self.level = r2  # lowest |g|^2 since the last restart, [P]
            self.choice = AutoState(r2) if self.auto else None
            self.previous = (z, g, r2)
            return plain
        z_before, g_before, r2_before = self.previous
        self.previous = (z, g, r2)

        # One problem's decision; between mixing groups it would carry a later token's residual to earlier ones.
        restart = (r2 > RESTART_FACTOR2 * self.level) & (g.shape[1] == 1)
        self.level = torch.where(restart, r2, torch.minimum(self.level, r2))
        mixes = ~restart  # [P]
        if self.choice is not None:
            along = dot(g.detach(), g_before.detach(), r2.dtype).sum(-1)
            mixes = mixes & choose(self.choice, step, r2, r2_before, along, AUTO_PRICE, g[0].numel())

        dg = g - g_before
        self._push(dg, z - z_before + self.damping * dg, mixes, r2.dtype)
        gamma, solved = self._weights(g, r2.dtype)
        mixed = plain
        for weight, dh, valid in zip(gamma.unbind(-1), self.dh, self.valid, strict=True):
            term = weight.to(dh.dtype).unsqueeze(-1) * dh
            mixed = mixed - torch.where(valid.unsqueeze(-1), term, 0.0)
        accepted = solved & torch.isfinite(mixed).all(-1)  # [P, G]
        self.valid = [valid & accepted for valid in self.valid]
        return torch.where(accepted.unsqueeze(-1), mixed, plain)

    def _push(self, dg: Tensor, dh: Tensor, mixes: Tensor, wide: torch.dtype) -> None:
        depth = min(self.history, dg.shape[-1])
        if len(self.dg) == depth:
            self.dg, self.dh, self.valid = self.dg[1:], self.dh[1:], self.valid[1:]
            self.gram = [row[1:] for row in self.gram[1:]]
        self.dg, self.dh = [*self.dg, dg], [*self.dh, dh]
        # A problem that does not mix now has no history: it was cleared, or never started.
        now = mixes.unsqueeze(-1).expand(dg.shape[:2])
        self.valid = [*(valid & now for valid in self.valid), now]
        self.gram = [*self.gram, [dot(dg, other, wide) for other in self.dg]]

    def _weights(self, g: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
        k = len(self.dg)
        if k == 0:  # a state without entries
            return g.new_zeros(*g.shape[:2], 0), torch.zeros(g.shape[:2], dtype=torch.bool, device=g.device)
        rows = [[self.gram[max(i, j)][min(i, j)] for j in range(k)] for i in range(k)]
        gram = torch.stack([torch.stack(row, -1) for row in rows], -2)
        rhs = torch.stack([dot(dg, g, wide) for dg in self.dg], -1)
        return small_solve(gram, rhs, torch.stack(self.valid, -1), self.ridge, self.pivot_floor)


class BroydenMethod:
    """Good Broyden for g(z) = 0 from the estimate B = -I, whose first step is Picard's.

    B^-1 = -I + sum_i u_i v_i^T, updated by Sherman and Morrison's formula with dz and dg of the last step:
    u = (dz - B^-1 dg) / (dz^T B^-1 dg), v = B^-T dz.
    """

    def __init__(self, history: int, damping: float) -> None:
        self.history, self.damping = history, damping
        self.u: list[Tensor] = []  # [P, M]
        self.v: list[Tensor] = []
        self.valid: list[Tensor] = []  # [P]
        self.previous: tuple[Tensor, Tensor] | None = None

    def advance(self, z: Tensor, g: Tensor, r2: Tensor, step: int) -> Tensor:
        shape = z.shape
        z, g = z.flatten(1), g.flatten(1)  # one estimate a problem: [P, M]
        plain = z + self.damping * g
        if self.previous is None:
            self.level = r2
            self.previous = (z, g)
            return plain.view(shape)
        dz, dg = z - self.previous[0], g - self.previous[1]
        self.previous = (z, g)

        restart = r2 > RESTART_FACTOR2 * self.level
        self.level = torch.where(restart, r2, torch.minimum(self.level, r2))
        used = sum(valid.int() for valid in self.valid)
        clear = restart | (used >= self.history) if self.valid else restart
        self.valid = [valid & ~clear for valid in self.valid]
        self._update(dz, dg, ~restart, r2.dtype)

        proposed = z - self.damping * self._apply(g, r2.dtype)
        accepted = torch.isfinite(proposed).all(-1) & ~restart
        self.valid = [valid & accepted for valid in self.valid]
        return torch.where(accepted.unsqueeze(-1), proposed, plain).view(shape)

    def _update(self, dz: Tensor, dg: Tensor, wanted: Tensor, wide: torch.dtype) -> None:
        image = self._apply(dg, wide)  # B^-1 dg
        along = dot(dz, image, wide)
        floor = BROYDEN_FLOOR * (dot(dz, dz, wide) * dot(image, image, wide)).detach().sqrt()
        usable = wanted & (along.abs() > floor)
        inverse = (1.0 / torch.where(usable, along, 1.0)).to(dz.dtype)
        v = self._apply(dz, wide, transposed=True)
        keep = slice(1, None) if len(self.u) == self.history else slice(None)  # those dropped are valid nowhere
        self.u = [*self.u[keep], (dz - image) * inverse.unsqueeze(-1)]
        self.v = [*self.v[keep], v]
        self.valid = [*self.valid[keep], usable]

    def _apply(self, x: Tensor, wide: torch.dtype, transposed: bool = False) -> Tensor:
        """B^-1 x, or B^-T x."""
        left, right = (self.v, self.u) if transposed else (self.u, self.v)
        result = -x
        for a, b, valid in zip(left, right, self.valid, strict=True):
            term = dot(b, x, wide).to(x.dtype).unsqueeze(-1) * a
            result = result + torch.where(valid.unsqueeze(-1), term, 0.0)
        return result


def dot(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """<a, b> over the last dimension, accumulated in `wide`."""
    return (a.to(wide) * b.to(wide)).sum(-1)
