"""The small least-squares problem of Anderson acceleration: csrc/common/small_solve.h for a batch of groups.

gamma = argmin | g - sum_j gamma_j dG_j |^2 + ridge * mean_j |dG_j|^2 * |gamma|^2

from its normal equations, equilibrated to a unit diagonal and factored by Cholesky. Where a pivot is at rounding
level the oldest column is dropped and the rest solved again. Instead of trying one after the other, all the systems
that remain after dropping 0, 1, ... columns are solved at once, and each group takes its first usable one.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_CAP = 1e6  # weights above this are noise: the history that gave them is discarded


def small_solve(
    gram: Tensor,  # [..., k, k], columns from the oldest to the newest
    rhs: Tensor,  # [..., k]
    valid: Tensor,  # [..., k] bool: the newest columns, as many as the group has
    ridge: float,
    pivot_floor: float,
) -> tuple[Tensor, Tensor]:
    """Returns gamma [..., k], zero for dropped columns, and whether [...] it is usable; if not, gamma is zero."""
    k = rhs.shape[-1]
    eye = torch.eye(k, dtype=torch.bool, device=gram.device)
    # Candidate c keeps columns c, c+1, ...: kept [c, k], or [..., c, k] once the group's own columns are known.
    kept = torch.ones(k, k, dtype=torch.bool, device=gram.device).triu()
    allowed = valid  # candidate c starts at column c, so all its columns are valid if column c is
    both = kept.unsqueeze(-1) & kept.unsqueeze(-2)  # [c, k, k]

    diagonal = gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)  # [..., 1, k]
    mean = torch.where(kept, diagonal, 0.0).sum(-1) / kept.sum(-1)  # [..., c]
    shifted = diagonal + (ridge * mean).unsqueeze(-1)  # [..., c, k]
    usable = allowed & (mean > 0) & torch.isfinite(mean) & ((shifted > 0) | ~kept).all(-1)
    safe = usable.unsqueeze(-1) & kept
    # A dropped or unusable column becomes a row of the identity with right-hand side 0.
    scale = torch.where(safe, shifted, 1.0).rsqrt()  # [..., c, k]
    system = gram.unsqueeze(-3) * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    system = torch.where(both & usable[..., None, None], system, 0.0).masked_fill(eye, 1.0)
    rest = torch.where(safe, rhs.unsqueeze(-2) * scale, 0.0)  # [..., c, k]

    columns, y = [], []
    for i in range(k):
        pivot = system[..., 0, 0]
        usable = usable & (pivot > pivot_floor)
        root = torch.where(usable, pivot, 1.0).sqrt()
        column = system[..., 1:, 0] / root.unsqueeze(-1)  # below the diagonal
        y.append(rest[..., 0] / root)
        columns.append((root, column))
        rest = rest[..., 1:] - column * y[i].unsqueeze(-1)
        system = system[..., 1:, 1:] - column.unsqueeze(-1) * column.unsqueeze(-2)
    solution: list[Tensor] = []  # from the last to the first
    for i in reversed(range(k)):
        root, column = columns[i]
        value = y[i]
        if solution:
            value = value - (column * torch.stack(solution[::-1], -1)).sum(-1)
        solution.append(value / root)
    weights = torch.stack(solution[::-1], -1) * scale  # [..., c, k]

    first = usable.to(torch.uint8).argmax(-1, keepdim=True)  # the first usable candidate; 0 if there is none
    chosen = weights.gather(-2, first.unsqueeze(-1).expand(*first.shape, k)).squeeze(-2)
    sane = usable.any(-1) & (chosen.abs() <= WEIGHT_CAP).all(-1)  # false for NaN
    return torch.where(sane.unsqueeze(-1), chosen, 0.0), sane
