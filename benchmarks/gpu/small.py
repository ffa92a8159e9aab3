"""Every kernel once or twice at sizes that a sanitizer gets through, checked against plain torch on the CPU.

python -m benchmarks.gpu.small --backend cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import attractor_kernels as ak

_TOLERANCE = 1e-3
_OPTIONS: dict[str, Any] = dict(rtol=1e-6, max_steps=60)

# Solver, batch and state: less than a tile, several tiles, and so many rows that tiles are wide.
_RUNS = ((ak.Picard(), 3, 20), (ak.Anderson(), 70, 33), (ak.Auto(), 2200, 20))
_CELLS: dict[str, Callable[[int], Any]] = {
    "affine": lambda dim: ak.nn.AffineCell(dim, 5, leak=0.1),
    "mlp": lambda dim: ak.nn.MLPCell(dim, 5, hidden_dim=dim + 3, activation="swiglu", norm="rms", skip=1.0),
    "gated": lambda dim: ak.nn.GatedCell(dim, 5),
}
# Of an input: a norm contracts where much is added, a gate where it stays open.
_SCALES = {"affine": 1.0, "mlp": 3.0, "gated": 0.5}
# problems, entries of the fused step: a warp a problem, a block a problem, many blocks a problem.
_STEPS = ((3, 100), (300, 700), (2, 9000))


def solve_cell(name: str, batch: int, dim: int, solver: Any, device: str, backend: str) -> list[Tensor]:
    """A state and its gradients."""
    torch.manual_seed(dim)
    cell, x = _CELLS[name](dim), _SCALES[name] * torch.randn(batch, 5)
    cell, x = cell.to(device), x.to(device).requires_grad_()
    z0 = torch.zeros(batch, dim, device=device)
    z, _ = ak.fixed_point(cell.bind(x), z0, solver=solver, backend=backend, **_OPTIONS)
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
    for solver, batch, dim in _RUNS:
        for name in _CELLS:
            what = f"{name} {batch}x{dim} {solver}"
            try:
                got = solve_cell(name, batch, dim, solver, *where)
            except ValueError as error:
                if "cannot run" not in str(error):
                    raise
                print(f"{what}: {error}")
                continue
            compare(what, got, solve_cell(name, batch, dim, solver, "cpu", "reference"))
        for problems, entries in _STEPS:
            got = solve_map(problems, entries, solver, *where)
            compare(f"map {problems}x{entries} {solver}", got, solve_map(problems, entries, solver, "cpu", "reference"))
    print("all cases ran")


if __name__ == "__main__":
    main()
