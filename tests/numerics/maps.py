"""Maps, backends and tolerances the numerical tests share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import attractor_kernels as ak

Map = Callable[[Tensor], Tensor]

# Only what is usable here; test_backends.py asserts that an installed wheel has "cpu".
BACKENDS = [name for name in ("reference", "cpu") if ak.backends.available()[name]]
FLOATS = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]

# The tightest relative tolerance a state of this dtype meets on a well-conditioned map.
TIGHT = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# How far a value that met TIGHT may be from the solution: tolerance over (1 - contraction), with margin.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}

SOLVERS = {
    "picard": ak.Picard(),
    "anderson": ak.Anderson(),
    "auto": ak.Auto(),
    "broyden": ak.Broyden(),
}


class Recorder:
    """A map that keeps every state the solver evaluated it at; one more evaluation, autograd on, is a gradient's."""

    def __init__(self, f: Map) -> None:
        self.f = f
        self.seen: list[Tensor] = []

    def __call__(self, z: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            self.seen.append(z.detach().clone())
        return self.f(z)

    def rows(self, row: int) -> list[np.ndarray]:
        return [z[row].double().numpy() for z in self.seen]


def kinsol(z: Tensor) -> Tensor:
    """SUNDIALS kinAnalytic_fp: solution (1/2, 1, -pi/6) from (0.1, 0.1, -0.1)."""
    x, y, w = z.unbind(-1)
    return torch.stack(
        [
            torch.cos((y - 1) * w) / 3 + 1 / 6,
            torch.sqrt(x * x + torch.sin(w) + 1.06) / 9 + 0.9,
            -torch.exp(-x * (y - 1)) / 20 - (10 * math.pi - 3) / 60,
        ],
        dim=-1,
    )


KINSOL_START = (0.1, 0.1, -0.1)
KINSOL_SOLUTION = (0.5, 1.0, -math.pi / 6)


def roberts(z: Tensor) -> Tensor:
    """SUNDIALS kinRoberts_fp: one backward Euler step (0.1) of Robertson's kinetics from (1, 0, 0)."""
    y1, y2, y3 = z.unbind(-1)
    first = 0.1 * (-0.04 * y1 + 1e4 * y2 * y3)
    third = 0.1 * 3e2 * y2 * y2
    return torch.stack([first + 1, -first - third, third], dim=-1)


ROBERTS_START = (1.0, 0.0, 0.0)
ROBERTS_SOLUTION = (0.9967854, 0.002953006, 0.0002616074)


def toth_kelley(z: Tensor) -> Tensor:
    """Toth & Kelley (2015), table 1: a Gram matrix that is singular to rounding."""
    u1, u2 = z.unbind(-1)
    first = torch.cos((u1 + u2) / 2)
    return torch.stack([first, first + 1e-8 * torch.sin(u1 * u1)], dim=-1)


def chandrasekhar_kernel(n: int, c: float) -> Tensor:
    mu = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return c / (2 * n) * mu[:, None] / (mu[:, None] + mu)


def chandrasekhar(n: int, c: float, dtype: torch.dtype) -> Map:
    """H(mu) = 1 / (1 - c/2 int mu / (mu + nu) H(nu) dnu) by the midpoint rule on n points."""
    kernel = chandrasekhar_kernel(n, c).to(dtype)
    return lambda h: 1 / (1 - h @ kernel.mT)


def linear(matrix: Tensor, shift: Tensor) -> Map:
    """z -> z A^T + b."""
    return lambda z: z @ matrix.mT + shift


def rotation14(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Seven plane rotations and a shift: every eigenvalue has modulus 1, none is 1."""
    angles = torch.linspace(0.3, 2.8, 7, dtype=torch.float64)
    blocks = [torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]]) for t in angles.tolist()]
    return torch.block_diag(*blocks).to(dtype), torch.linspace(-1, 1, 14, dtype=torch.float64).to(dtype)


def family(name: str, rows: int, size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(W, u) of the two families of tanh cells: "orth", spectrum on a circle, and "sym", real and slow."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    noise = torch.randn(rows, size, dtype=torch.float64, generator=generator)
    if name == "orth":
        return (0.9 * q).to(dtype), (0.5 * noise).to(dtype)
    eigenvalues = torch.linspace(-0.27, 0.9, size, dtype=torch.float64)
    return ((q * eigenvalues) @ q.mT).to(dtype), (0.3 * noise).to(dtype)


def true_residual(f: Map, z: Tensor) -> Tensor:
    """|f(z) - z| / |f(z)| per row, in float64 where the map allows it."""
    with torch.no_grad():
        fz = f(z).double().flatten(1)
    return (fz - z.double().flatten(1)).norm(dim=1) / fz.norm(dim=1)


def assert_same_bits(a: Tensor, b: Tensor, what: str = "") -> None:
    """Bitwise equal: NaN and the sign of zero included."""
    assert a.shape == b.shape and a.dtype == b.dtype
    same = (a.detach().reshape(-1, 1).view(torch.uint8) == b.detach().reshape(-1, 1).view(torch.uint8)).all(-1)
    count, largest = int((~same).sum()), (a.detach().double() - b.detach().double()).abs().max() if a.numel() else 0
    assert count == 0, f"{what} {count} of {a.numel()} entries differ, by up to {float(largest):.3g}".strip()
