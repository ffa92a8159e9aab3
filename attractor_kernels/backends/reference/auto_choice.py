"""How Auto chooses between Picard and Anderson steps: csrc/common/auto_choice.h for a batch of problems."""

from __future__ import annotations

import torch
from torch import Tensor

COSINE2 = 0.12  # squared cosine between successive residuals that starts Anderson ...
CHANCE2 = 4.0  # ... plus this over the state's size: what directions at random come to ...
PRICED2 = 0.6  # ... plus this times what an Anderson step costs more
MOST2 = 0.9  # ... and never more than this
STALL2 = 0.98  # squared contraction above which Picard counts as stalled
DEAR = 2.0  # an Anderson step dearer than this is for stalled problems only
WINDOW = 8  # Anderson steps before they are judged
TRIAL = 3  # Picard steps of the trial

PICARD, ANDERSON, ON_TRIAL, KEEP_PICARD, KEEP_ANDERSON = range(5)


class AutoState:
    """All [P]."""

    def __init__(self, like: Tensor) -> None:
        self.mode = torch.zeros_like(like, dtype=torch.uint8)
        self.since = torch.zeros_like(like, dtype=torch.int32)  # steps in this mode
        self.picard2 = torch.zeros_like(like)  # squared contraction of the Picard step before Anderson
        self.entry_r2 = torch.zeros_like(like)  # |g|^2 when the Anderson window began
        self.anderson2 = torch.zeros_like(like)  # its squared contraction over the whole window


def watches(step: int) -> bool:
    """Whether problems in Picard mode are looked at after this evaluation of f."""
    return step >= 2


def choose(a: AutoState, step: int, r2: Tensor, previous_r2: Tensor, dot: Tensor, price: float, entries: int) -> Tensor:
    """r2, previous_r2: |g_k|^2, |g_{k-1}|^2; dot: <g_k, g_{k-1}>; all [P]. price: cost of an Anderson step in Picard's.

    Returns where [P] the next step is to be an Anderson step.
    """
    mode, since = a.mode, a.since + 1

    start = torch.zeros_like(mode, dtype=torch.bool)
    if watches(step):
        cosine2 = min(COSINE2 + CHANCE2 / max(entries, 1) + PRICED2 * (price - 1), MOST2)
        aligned = dot * dot > cosine2 * r2 * previous_r2 if price <= DEAR else start
        start = (mode == PICARD) & (aligned | (r2 > STALL2 * previous_r2))

    judged = (mode == ANDERSON) & (since >= WINDOW)
    anderson2 = torch.where(judged, r2 / a.entry_r2, a.anderson2)
    steps = int(WINDOW * price + 0.5)  # Picard steps that cost what the window does
    trial = judged & ~(anderson2 < a.picard2**steps)

    tried = (mode == ON_TRIAL) & (since >= TRIAL)
    contraction2 = r2 / previous_r2

    mode = torch.where(start, ANDERSON, mode)
    mode = torch.where(trial, ON_TRIAL, mode)
    mode = torch.where(tried, torch.where(contraction2**steps < anderson2, KEEP_PICARD, KEEP_ANDERSON), mode).to(
        torch.uint8
    )
    a.mode, a.anderson2 = mode, anderson2
    a.picard2 = torch.where(start, contraction2, a.picard2)
    a.since = torch.where(start | judged, 0, since)
    a.entry_r2 = torch.where(start | judged, r2, a.entry_r2)
    return (mode == ANDERSON) | (mode == KEEP_ANDERSON)
