"""The classifier of the demonstration, its two fixed-point layers, and the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import attractor_kernels as ak

VARIANTS = ("unrolled", "attractor_kernels")
PIXELS, CLASSES = 64, 10


@dataclass(frozen=True)
class Settings:
    """What is trained, and for how long."""

    state_dim: int = 512
    batch: int = 128
    epochs: int = 12
    learning_rate: float = 1e-3
    rtol: float = 1e-5
    max_steps: int = 200
    spectral_limit: float = 0.95  # of W: the largest spectral norm it may have
    seed: int = 0


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 handwritten digits, 8 x 8 pixels, in a fixed split."""

    train_x: Tensor  # [N, 64], pixels from 0 to 1
    train_y: Tensor  # [N]
    test_x: Tensor
    test_y: Tensor

    @classmethod
    def load(cls) -> Digits:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        x = torch.as_tensor(pixels, dtype=torch.float32) / 16.0
        y = torch.as_tensor(labels, dtype=torch.int64)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        train, test = order[:1437], order[1437:]
        return cls(x[train], y[train], x[test], y[test])

    def batches(self, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
        """Every epoch in a new order, the same for everyone who asks with the same seed; the rest is dropped."""
        generator = torch.Generator().manual_seed(settings.seed)
        for _ in range(settings.epochs):
            order = torch.randperm(len(self.train_x), generator=generator)
            for rows in order.split(settings.batch):
                if len(rows) == settings.batch:
                    yield self.train_x[rows], self.train_y[rows]

    def steps(self, settings: Settings) -> int:
        return settings.epochs * (len(self.train_x) // settings.batch)


class UnrolledFixedPoint(nn.Module):
    """z <- tanh(z W^T + u), again and again until the whole batch has met the tolerance, differentiated by autograd.

    What one writes without a library: it stops when its slowest row does, and keeps every step for the backward pass.
    """

    def __init__(self, cell: ak.nn.AffineCell, rtol: float, max_steps: int) -> None:
        super().__init__()
        self.cell, self.rtol, self.max_steps = cell, rtol, max_steps
        self.steps = torch.zeros(0, dtype=torch.int32)  # [B], of the last call

    def forward(self, x: Tensor) -> Tensor:  # [B, 64] -> [B, D]
        u = self.cell.inject(x)
        weight_t = self.cell.weight.T
        z = torch.zeros_like(u)
        taken = 0
        for _ in range(self.max_steps):
            f = torch.tanh(torch.addmm(u, z, weight_t))
            taken += 1
            with torch.no_grad():
                done = bool(((f - z).norm(dim=1) <= self.rtol * f.norm(dim=1)).all())
            z = f
            if done:
                break
        self.steps = torch.full((len(x),), taken, dtype=torch.int32)
        return z


class Classifier(nn.Module):
    """A fixed-point layer between pixels and a linear readout."""

    def __init__(self, variant: str, settings: Settings) -> None:
        super().__init__()
        torch.manual_seed(settings.seed)
        cell = ak.nn.AffineCell(settings.state_dim, PIXELS, activation="tanh")
        nn.init.orthogonal_(cell.weight, gain=0.5)
        self.spectral_limit = settings.spectral_limit
        self.direction = nn.functional.normalize(torch.ones(settings.state_dim), dim=0)  # [D]
        self.layer: UnrolledFixedPoint | ak.nn.FixedPoint
        if variant == "unrolled":
            self.layer = UnrolledFixedPoint(cell, settings.rtol, settings.max_steps)
        elif variant == "attractor_kernels":
            self.layer = ak.nn.FixedPoint(cell, rtol=settings.rtol, max_steps=settings.max_steps)
        else:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        self.readout = nn.Linear(settings.state_dim, CLASSES)
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layer(x))

    @torch.no_grad()
    def keep_contracting(self) -> None:
        """Scales W back where its spectral norm, by one power iteration a training step, has passed the limit: a
        fixed point then exists, and plain iteration reaches it."""
        weight = self.cell.weight
        left = nn.functional.normalize(weight @ self.direction, dim=0)
        self.direction = nn.functional.normalize(weight.T @ left, dim=0)
        weight.mul_((self.spectral_limit / (left @ weight @ self.direction)).clamp(max=1.0))

    def steps(self) -> Tensor:
        """Steps of each problem in the last call."""
        layer = self.layer
        if isinstance(layer, UnrolledFixedPoint):
            return layer.steps
        assert layer.info is not None, "called before the first forward"
        return layer.info.steps


def optimizer_of(model: Classifier, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=settings.learning_rate)


def train_step(model: Classifier, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """One step of training; the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    model.keep_contracting()
    return loss.item()
