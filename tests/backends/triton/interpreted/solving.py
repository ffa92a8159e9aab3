"""One operator call in Triton's interpreter, and the same in plain torch in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attractor_kernels.backends import plan
from attractor_kernels.backends.triton import launch
from attractor_kernels.ops._declare import OPERATORS, SolveResult, Tail

PICARD, ANDERSON, AUTO = range(3)
# So few multiprocessors that a few dozen rows are more than one round.
SMALL = plan.DeviceFacts("small", (9, 0), 1, 50 << 20, 227 << 10)


class Case(NamedTuple):
    """An operator and its tensors, in float64, and constants."""

    name: str
    tensors: tuple[Tensor | None, ...]
    constants: tuple[Any, ...] = ()

    def triton(
        self, options: Tail, rows: Any = slice(None), dtype: torch.dtype = torch.float32, tile: int = 16
    ) -> SolveResult:
        """Solved by the kernel, in a tile of so many rows; rows: which of the batch."""
        tensors = [None if t is None else t.to(dtype) for t in self.rows(rows).tensors]
        arguments = (*tensors, *self.constants, *options)
        return SolveResult(*launch.solve_rows(self.name, arguments, SMALL, tile))

    def reference(self, options: Tail, dtype: torch.dtype = torch.float64) -> SolveResult:
        operator = getattr(torch.ops.attractor_kernels_reference, self.name)
        tensors = [None if t is None else t.to(dtype) for t in self.tensors]
        return SolveResult(*operator(*tensors, *self.constants, *options))

    def rows(self, rows: Any) -> Case:
        per_row = OPERATORS[self.name].rows
        tensors = (t[rows] if own and t is not None else t for t, own in zip(self.tensors, per_row, strict=True))
        return self._replace(tensors=tuple(tensors))


def tail(solver: int = PICARD, **options: Any) -> Tail:
    defaults = dict(
        history=3,
        damping=1.0,
        ridge=1e-8,
        rtol=1e-5,
        atol=0.0,
        max_steps=60,
        min_steps=0,
        keep_best=False,
        trace=False,
        mixed=False,
    )
    return Tail(solver=solver, **(defaults | options))


def agree(got: SolveResult, want: SolveResult, tolerance: float = 1e-5) -> None:
    """The same ends, the same values; a step more or less where a residual lies at the tolerance."""
    assert torch.equal(got.status, want.status), (got.status, want.status)
    assert (got.steps - want.steps).abs().max() <= 1, (got.steps, want.steps)
    scale = want.z[want.z.isfinite()].abs().max().clamp(min=1e-30)
    torch.testing.assert_close(got.z.double() / scale, want.z.double() / scale, rtol=0, atol=tolerance, equal_nan=True)
    same = got.steps == want.steps
    torch.testing.assert_close(got.residual[same], want.residual[same], rtol=0.05, atol=1e-6, equal_nan=True)


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


def contraction(outputs: int, inputs: int, norm: float) -> Tensor:
    w = normal(outputs, inputs)
    return w * (norm / torch.linalg.matrix_norm(w, 2))


def family(name: str, rows: int, dim: int) -> Case:
    """The two families of tanh cells that tell solvers apart."""
    q = torch.linalg.qr(normal(dim, dim))[0]
    if name == "orth":
        weight, u = 0.9 * q, normal(rows, dim, scale=0.5)
    else:
        eigenvalues = torch.linspace(-0.27, 0.9, dim, dtype=torch.float64)
        weight, u = q @ torch.diag(eigenvalues) @ q.mT, normal(rows, dim, scale=0.3)
    return Case("solve_affine", (torch.zeros_like(u), u, weight, None, None), (1, 0))


def affine(rows: int, dim: int, norm: float = 0.6, activation: int = 1, pieces: int = 0, **options: Any) -> Case:
    leak = 0.2 * torch.rand(dim, dtype=torch.float64) if options.get("leak") else None
    scale = torch.rand(rows, dim, dtype=torch.float64) if options.get("scale") else None
    weight = contraction(dim, dim, norm)
    return Case("solve_affine", (normal(rows, dim), normal(rows, dim), weight, leak, scale), (activation, pieces))


def gated(rows: int, dim: int) -> Case:
    return Case("solve_gated", (normal(rows, dim), normal(rows, 2 * dim), contraction(2 * dim, dim, 0.7)))
