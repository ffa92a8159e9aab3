"""Every kernel once or twice at sizes that a sanitizer gets through, checked against plain torch on the CPU.

python -m benchmarks.gpu.small --backend cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import attractor_kernels as ak
from attractor_kernels.backends import use_plan
from attractor_kernels.backends.override import CUDA_OPERATORS

_TOLERANCE = 1e-3
_OPTIONS: dict[str, Any] = dict(rtol=1e-6, max_steps=60)


@dataclass(frozen=True)
class Run:
    """choices: as of `use_plan`, for every operator of that backend."""

    solver: Any
    batch: int
    dim: int
    precision: str = "full"
    backends: tuple[str, ...] = ("cuda", "triton", "cpu", "reference")
    choices: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        choices = "".join(f" {name}={value}" for name, value in self.choices.items())
        return f"{self.batch}x{self.dim} {self.solver} {self.precision}{choices}"


_ON_CUDA: dict[str, Any] = dict(precision="mixed", backends=("cuda",))
# Less than a tile, several tiles, and so many rows that tiles are wide; then what plans choose for other sizes:
# products of changes, in either tile, by warpgroups where there are such and by warps, and weights split over a crew.
_RUNS = (
    Run(ak.Picard(), 3, 20),
    Run(ak.Anderson(), 70, 33),
    Run(ak.Auto(), 2200, 20),
    Run(ak.Anderson(), 40, 100, "mixed"),
    Run(ak.Auto(), 70, 84, choices={"rows": 32}, **_ON_CUDA),
    Run(ak.Auto(), 20, 100, choices={"wgmma": 0}, **_ON_CUDA),
    Run(ak.Auto(), 5, 64, backends=("cuda",), choices={"crew": 1}),
    Run(ak.Picard(), 40, 48, "mixed", backends=("triton",), choices={"mixed": 1}),
)
_CELLS: dict[str, Callable[[int], Any]] = {
    "affine": lambda dim: ak.nn.AffineCell(dim, 5, leak=0.1),
    "mlp": lambda dim: ak.nn.MLPCell(dim, 5, hidden_dim=dim + 3, activation="swiglu", norm="rms", skip=1.0),
    "gated": lambda dim: ak.nn.GatedCell(dim, 5),
}
# Of an input: a norm contracts where much is added, a gate where it stays open.
_SCALES = {"affine": 1.0, "mlp": 3.0, "gated": 0.5}
# problems, entries of the fused step: a warp a problem, a block a problem, many blocks a problem.
_STEPS = ((3, 100), (300, 700), (2, 9000))


def solve_cell(name: str, run: Run, device: str, backend: str) -> list[Tensor]:
    """A state and its gradients."""
    torch.manual_seed(run.dim)
    cell, x = _CELLS[name](run.dim), _SCALES[name] * torch.randn(run.batch, 5)
    cell, x = cell.to(device), x.to(device).requires_grad_()
    z0 = torch.zeros(run.batch, run.dim, device=device)
    options = dict(solver=run.solver, precision=run.precision, backend=backend, **_OPTIONS)
    with ExitStack() as told:
        for operator in CUDA_OPERATORS if run.choices and backend in ("cuda", "triton") else ():
            told.enter_context(use_plan(operator, backend=backend, **run.choices))
        z, _ = ak.fixed_point(cell.bind(x), z0, **options)
        wanted = [x, *cell.parameters()]
        cotangent = torch.linspace(-1, 1, z.numel(), device=device).view_as(z)
        return [z.detach(), *torch.autograd.grad(z, wanted, cotangent)]


def solve_map(batch: int, entries: int, solver: Any, device: str, backend: str) -> list[Tensor]:
    """A state of a map that is no cell's."""
    generator = torch.Generator().manual_seed(entries)
    u = torch.randn(batch, entries, generator=generator).to(device)
    with torch.no_grad():
        z, _ = ak.fixed_point(
            lambda z: torch.tanh(0.4 * z.roll(1, 1) + u),
            torch.zeros_like(u),
            solver=solver,
            backend=backend,
            **_OPTIONS,
        )
    return [z]


def compare(what: str, got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Raises where a result is not what plain torch has."""
    for a, b in zip(got, want, strict=True):
        error = float((a.cpu() - b).norm() / b.norm().clamp(min=1e-30))
        if not error < _TOLERANCE:
            raise RuntimeError(f"{what} is {error:.1e} off")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    where = (options.device, options.backend)
    for run in _RUNS:
        if options.backend not in run.backends:
            continue
        for name in _CELLS:
            what = f"{name} {run}"
            try:
                got = solve_cell(name, run, *where)
            except ValueError as error:
                if "cannot run" not in str(error):
                    raise
                print(f"{what}: {error}")
                continue
            compare(what, got, solve_cell(name, run, "cpu", "reference"))
        if run.choices or run.precision == "mixed":  # which a map that is no cell's knows nothing of
            continue
        for problems, entries in _STEPS:
            got = solve_map(problems, entries, run.solver, *where)
            want = solve_map(problems, entries, run.solver, "cpu", "reference")
            compare(f"map {problems}x{entries} {run.solver}", got, want)
    print("all cases ran")


if __name__ == "__main__":
    main()
