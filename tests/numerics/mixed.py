"""Affine problems solved with precision="mixed", and what the plain map in float64 says of the value returned."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from cells import PHI
from maps import family
from torch import Tensor

import attractor_kernels as ak

SOLVERS = {
    "picard": ak.Picard(),
    "damped": ak.Picard(0.8),
    "anderson": ak.Anderson(),
    "anderson-1": ak.Anderson(1),
    "anderson-12": ak.Anderson(12, 0.9),
    "auto": ak.Auto(),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@dataclass(frozen=True)
class InFull:
    """A solver for `Problem.solve` in full precision, where Auto may take products of changes, as good as full ones."""

    solver: ak.options.Solver


IN_FULL = InFull(ak.Auto())
every_solver_and_full = pytest.mark.parametrize("solver", [*SOLVERS.values(), IN_FULL], ids=[*SOLVERS, "auto in full"])
main_solvers_and_full = pytest.mark.parametrize(
    "solver", [ak.Picard(), ak.Anderson(), ak.Auto(), IN_FULL], ids=["picard", "anderson", "auto", "auto in full"]
)
main_solvers = pytest.mark.parametrize(
    "solver", [ak.Picard(), ak.Anderson(), ak.Auto()], ids=["picard", "anderson", "auto"]
)
RTOL = 1e-5


def has_few_bits() -> bool:
    """Whether the compiled kernels have products in few bits on this processor."""
    from attractor_kernels import _facts

    return _facts.instruction_set() not in ("portable", "avx2", "avx512")


@dataclass(frozen=True)
class Problem:
    """z = leak * z + phi(z weight^T + u), float32, and where the solve starts."""

    weight: Tensor  # [D, D]
    u: Tensor  # [B, D]
    z0: Tensor  # [B, D]
    activation: str = "tanh"
    leak: float | None = None

    def solve(self, backend, solver, rows=slice(None), u=None, z0=None, **options):
        size = self.weight.shape[0]
        cell = ak.nn.AffineCell(size, 1, activation=self.activation, leak=self.leak, dtype=self.weight.dtype)
        cell.weight.data = self.weight
        bound = cell.bind_injection((self.u if u is None else u)[rows])
        full = isinstance(solver, InFull)
        options = dict(rtol=RTOL, max_steps=150, precision="full" if full else "mixed") | options
        solver = solver.solver if full else solver
        with torch.no_grad():
            return ak.fixed_point(
                bound, (self.z0 if z0 is None else z0)[rows], solver=solver, backend=backend, **options
            )

    def judge(self, z: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The true relative residual of each row, and what evaluating f once in float32 may add to it."""
        z, u, weight = z.double(), (self.u if u is None else u).double(), self.weight.double()
        a = (z @ weight.mT + u).requires_grad_()
        phi = PHI[self.activation](a)
        (slope,) = torch.autograd.grad(phi.sum(), a)
        f = phi.detach() + (self.leak or 0.0) * z
        sums = z.abs() @ weight.abs().mT + u.abs()
        rounding = 4 * torch.finfo(torch.float32).eps * (slope.abs() * sums + f.abs() + z.abs())
        return (f - z).norm(dim=-1) / f.norm(dim=-1), rounding.norm(dim=-1) / f.norm(dim=-1)


def assert_honest(problem: Problem, z: Tensor, info: ak.SolveInfo, rtol: float = RTOL, u: Tensor | None = None):
    """What is reported belongs to the value, and a problem that says it converged has."""
    residual, rounding = problem.judge(z, u)
    error = (info.residual.double() - residual).abs()
    assert (error <= rounding + 1e-3 * residual).all(), f"reported residual off by {error.max():.1e}"
    assert (info.residual[info.converged] <= rtol).all()
    true = residual[info.converged]
    assert (true <= rtol + rounding[info.converged]).all(), f"true residual {true.max():.2e}"


@functools.cache
def problem_of(kind: str, size: int, rows: int = 61) -> Problem:
    weight, u = family(kind, rows, size, torch.float32)
    return Problem(weight, u, torch.zeros(rows, size))


def cotangents(problem: Problem) -> Tensor:
    v = torch.linspace(-1, 1, problem.u.numel()).view(problem.u.shape)
    v[3] *= 1e-8  # the tolerance is relative
    return v


def adjoint_solution(problem: Problem, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """phi' and the exact w = J^T w + v, tanh."""
    weight = problem.weight.double()
    slope = 1 - torch.tanh(z.double() @ weight.mT + problem.u.double()).square()
    system = torch.eye(len(weight), dtype=torch.float64) - slope[:, :, None] * weight  # I - J, [B, D, D]
    return slope, torch.linalg.solve(system.mT, v.double())
