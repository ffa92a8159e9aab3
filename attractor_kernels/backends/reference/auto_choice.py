"""How Auto chooses between Picard and Anderson steps: csrc/common/auto_choice.h for a batch of problems."""

from __future__ import annotations

import math

import torch
from torch import Tensor

COSINE2 = 0.12  # squared cosine between successive residuals that starts Anderson
STALL2 = 0.98  # squared contraction above which Picard counts as stalled
MAX_PRICE = 2.0  # an Anderson step dearer than this is for stalled problems only
SLOW2 = 0.5  # squared contraction per step above which Anderson is put to trial
WINDOW = 8  # Anderson steps before they are judged
TRIAL = 3  # Picard steps of the trial

PICARD, ANDERSON, ON_TRIAL, KEEP_PICARD, KEEP_ANDERSON = range(5)


def watches(step: int) -> bool:
    """The evaluations of f (counted from 1) after which a problem in Picard mode is looked at."""
    return step >= 2 and (step <= 5 or step % 4 == 0)


class AutoState:
    """All [P]."""

    def __init__(self, like: Tensor) -> None:
        self.mode = torch.full_like(like, PICARD, dtype=torch.int32)
        self.since = torch.zeros_like(self.mode)  # steps in this mode
        self.entry_r2 = torch.zeros_like(like)  # |g|^2 when the Anderson window began
        self.anderson2 = torch.zeros_like(like)  # its squared contraction over the whole window


def choose(a: AutoState, step: int, r2: Tensor, previous_r2: Tensor, dot: Tensor, price: float) -> Tensor:
    """r2, previous_r2: |g_k|^2, |g_{k-1}|^2; dot: <g_k, g_{k-1}>; all [P]. price: an Anderson step's cost in Picard steps.

    Returns where [P] the next step is to be an Anderson step.
    """
    since = a.since + 1
    start = torch.zeros_like(a.mode, dtype=torch.bool)
    if watches(step):
        aligned = (dot * dot > COSINE2 * r2 * previous_r2) & (price <= MAX_PRICE)
        start = (a.mode == PICARD) & (aligned | (r2 > STALL2 * previous_r2))

    judged = (a.mode == ANDERSON) & (since >= WINDOW)
    reduction = r2 / torch.where(judged, a.entry_r2, 1.0)
    a.anderson2 = torch.where(judged, reduction, a.anderson2)
    on_trial = judged & ~(reduction < SLOW2**WINDOW)

    tried = (a.mode == ON_TRIAL) & (since >= TRIAL)
    picard2 = (r2 / torch.where(tried, previous_r2, 1.0)) ** math.floor(WINDOW * price + 0.5)
    picard_wins = tried & (picard2 < a.anderson2)

    mode = torch.where(start, ANDERSON, a.mode)
    mode = torch.where(on_trial, ON_TRIAL, mode)
    mode = torch.where(picard_wins, KEEP_PICARD, mode)
    a.mode = torch.where(tried & ~picard_wins, KEEP_ANDERSON, mode)
    a.since = torch.where(start | judged, 0, since)
    a.entry_r2 = torch.where(start | judged, r2, a.entry_r2)
    return (a.mode == ANDERSON) | (a.mode == KEEP_ANDERSON)
