"""Training both variants side by side, and what is measured on the way."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .memory import Memory, measure_in_child
from .model import VARIANTS, Classifier, Digits, Settings, optimizer_of, train_step


@dataclass
class Outcome:
    """What one variant came to."""

    variant: str
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each training step
    accuracy: float = 0.0  # on the test set
    steps: dict[int, int] = field(default_factory=dict)  # steps -> problems of the test set
    memory: Memory | None = None

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def mean_steps(self) -> float:
        return sum(k * n for k, n in self.steps.items()) / sum(self.steps.values())


@dataclass
class Watcher:
    """What training tells whoever watches it."""

    start: Callable[[int], None] = field(default=lambda total: None)
    step: Callable[[dict[str, float]], None] = field(default=lambda losses: None)
    measuring: Callable[[str], None] = field(default=lambda variant: None)


def compare(settings: Settings, watcher: Watcher | None = None, memory: bool = True) -> dict[str, Outcome]:
    """Trains both variants from the same start on the same batches, a step of one and then a step of the other, so
    that their times are taken under the same conditions; then peak memory, each in a process of its own."""
    watcher = watcher or Watcher()
    digits = Digits.load()
    models = {variant: Classifier(variant, settings) for variant in VARIANTS}
    optimizers = {variant: optimizer_of(model, settings) for variant, model in models.items()}
    outcomes = {variant: Outcome(variant) for variant in VARIANTS}
    watcher.start(digits.steps(settings))
    for turn, (x, y) in enumerate(digits.batches(settings)):
        for variant in VARIANTS if turn % 2 == 0 else VARIANTS[::-1]:
            start = time.perf_counter()
            loss = train_step(models[variant], optimizers[variant], x, y)
            outcomes[variant].seconds.append(time.perf_counter() - start)
            outcomes[variant].losses.append(loss)
        watcher.step({variant: outcome.losses[-1] for variant, outcome in outcomes.items()})
    for variant, model in models.items():
        _test(model, digits, outcomes[variant])
    if memory:
        with tempfile.TemporaryDirectory() as folder:
            # Both on the same weights: what a trained model needs.
            weights = Path(folder) / "weights.pt"
            torch.save(_weights(models["unrolled"]), weights)
            for variant in VARIANTS:
                watcher.measuring(variant)
                outcomes[variant].memory = measure_in_child(variant, settings, weights)
    return outcomes


def _weights(model: Classifier) -> dict[str, dict[str, torch.Tensor]]:
    return {"cell": model.cell.state_dict(), "readout": model.readout.state_dict()}


def _test(model: Classifier, digits: Digits, outcome: Outcome) -> None:
    with torch.no_grad():
        right = model(digits.test_x).argmax(dim=1) == digits.test_y
    outcome.accuracy = float(right.float().mean())
    outcome.steps = dict(sorted(Counter(model.steps().tolist()).items()))
