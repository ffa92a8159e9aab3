"""The problems that are timed: shapes, dtypes, and two families of maps that tell solvers apart.

orth: W = 0.9 x orthogonal, u ~ 0.5 N(0, 1). The spectrum lies on a circle, Anderson acceleration saves little.
sym: W symmetric with eigenvalues from -0.27 to 0.9, u ~ 0.3 N(0, 1). Anderson acceleration halves the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

import attractor_kernels as ak
from attractor_kernels import nn

from .maps import MAPS, Map, Step

SHAPES = ((1, 64), (64, 64), (256, 128), (1024, 256), (512, 512), (4096, 128), (64, 1024), (16384, 32))
FAMILIES = ("orth", "sym")
CELLS = tuple(MAPS)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
PASSES = ("forward", "backward", "forward+backward")

RTOL = 1e-5  # of every solver, ours and the others'
MAX_STEPS = 400  # more than any of the cases needs

_INPUT_SCALE = {"orth": 0.5, "sym": 0.3}
_REFERENCE_RTOL = 1e-7  # two orders of magnitude below what the gate looks for
_REFERENCE_STEPS = 5000


@dataclass(frozen=True)
class Case:
    """One problem to time, named by its cell, family, shape and dtype."""

    cell: str
    family: str
    batch: int
    dim: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("cell", self.cell, CELLS),
            ("family", self.family, FAMILIES),
            ("dtype", self.dtype, tuple(DTYPES)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.batch < 1 or self.dim < 1:
            raise ValueError(f"batch and dim must be at least 1, got {self.batch}x{self.dim}")

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.dim}"

    def __str__(self) -> str:
        return f"{self.cell} {self.family} {self.shape} {self.dtype}"


@lru_cache(maxsize=8)
def family_matrix(family: str, dim: int) -> Tensor:  # [D, D] float64
    """W of a family; the same in every run."""
    generator = torch.Generator().manual_seed(dim)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    if family == "orth":
        return 0.9 * q
    return q @ torch.diag(torch.linspace(-0.27, 0.9, dim, dtype=torch.float64)) @ q.T


class Problem:
    """A case with its tensors, and what the right answers are.

    The tensors have the same values on every device; the answers are computed where they are, in float64.
    """

    def __init__(self, case: Case, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.case = case
        self.map: Map = MAPS[case.cell]
        generator = torch.Generator().manual_seed(1000 + seed)
        dtype = DTYPES[case.dtype]
        matrix = family_matrix(case.family, case.dim)
        scale = _INPUT_SCALE[case.family]
        u = self.map.injection(case.batch, case.dim, scale, generator)
        self.u = u.to(device, dtype)  # [B, D], or [B, 2 D] for the gated cell
        self.parameters = {name: p.to(device, dtype) for name, p in self.map.parameters(matrix, generator).items()}
        self.z0 = torch.zeros(case.batch, case.dim, dtype=dtype, device=device)  # [B, D]
        # What a loss would send back.
        cotangent = torch.randn(case.batch, case.dim, generator=generator, dtype=torch.float64)
        self.cotangent = cotangent.to(device, dtype)

    def leaves(self) -> dict[str, Tensor]:
        """Copies of every parameter and of the injection "u", all of which need a gradient."""
        named = {**self.parameters, "u": self.u}
        return {name: tensor.detach().clone().requires_grad_() for name, tensor in named.items()}

    @property
    def flops_per_row_step(self) -> int:
        return self.map.flops(self.case.dim)

    @property
    def moved_bytes(self) -> int:
        """What a solve must move: the start and the injection are read, the state is written, the weights read once."""
        tensors = [self.z0, self.z0, self.u, *self.parameters.values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    @cached_property
    def cell(self) -> tuple[nn.Cell, dict[str, Tensor]]:
        """This package's cell with the problem's parameters, and those by name."""
        return self.map.make_cell(self.parameters)

    @cached_property
    def solution(self) -> Tensor:  # [B, D] float64
        """The fixed point in float64, to a tolerance far below what is asked of a solver."""
        step = self.map.step(self.u.double(), {name: p.double() for name, p in self.parameters.items()})
        with torch.no_grad():
            return _solved(step, self.z0.double(), str(self.case))

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients of sum(z* x cotangent), by the adjoint equation w = J^T w + v in float64."""
        leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in self.leaves().items()}
        parameters = {name: leaf for name, leaf in leaves.items() if name != "u"}
        z = self.solution.clone().requires_grad_()
        f = self.map.step(leaves["u"], parameters)(z)
        v = self.cotangent.double()

        def adjoint(w: Tensor) -> Tensor:
            return torch.autograd.grad(f, z, w, retain_graph=True)[0] + v

        w = _solved(adjoint, v, f"the adjoint of {self.case}")
        return dict(zip(leaves, torch.autograd.grad(f, list(leaves.values()), w), strict=True))

    def expected(self, which: str) -> dict[str, Tensor]:
        """What a contender of the pass `which` has to come up with, in float64."""
        forward = {"z": self.solution} if which != "backward" else {}
        backward = self.gradients if which != "forward" else {}
        return {**forward, **backward}


def _solved(step: Step, z: Tensor, what: str) -> Tensor:
    """Iterates a plain torch map in float64 until every row's residual, taken right here, is small.

    Whoever provides the start cannot make the result wrong; that it is Anderson's only saves time.
    """
    start, _ = ak.fixed_point(step, z, solver=ak.Anderson(), rtol=_REFERENCE_RTOL, max_steps=200, backend="reference")
    z = start.detach()
    for _ in range(_REFERENCE_STEPS):
        f = step(z)
        residual = ((f - z).norm(dim=1) / f.norm(dim=1)).max()
        z = f
        if residual <= _REFERENCE_RTOL:
            return z
    raise RuntimeError(f"{what} did not converge in {_REFERENCE_STEPS} steps")


def parse_shape(text: str) -> tuple[int, int]:
    """ "1024x256" -> (1024, 256).

    >>> parse_shape("1024x256")
    (1024, 256)
    """
    batch, separator, dim = text.lower().partition("x")
    if not separator or not batch.isdigit() or not dim.isdigit() or int(batch) < 1 or int(dim) < 1:
        raise ValueError(f"a shape must look like 1024x256 (batch x state), got {text!r}")
    return int(batch), int(dim)
