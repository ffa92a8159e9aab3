"""The maps of the cases in plain torch, and the cells of this package that are the same maps.

Every map is made from one matrix W (see cases.py), so that its Jacobian at the fixed point has W's kind of spectrum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attractor_kernels import nn

Step = Callable[[Tensor], Tensor]


class Map(ABC):
    """A parametrised map z -> f(z; u)."""

    cell: str

    @abstractmethod
    def parameters(self, matrix: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights by name, float64, from a family's [D, D] matrix."""

    def injection(self, batch: int, dim: int, scale: float, generator: torch.Generator) -> Tensor:
        """u, float64."""
        return scale * torch.randn(batch, dim, generator=generator, dtype=torch.float64)  # [B, D]

    @abstractmethod
    def step(self, u: Tensor, parameters: dict[str, Tensor]) -> Step:
        """f as somebody who knows torch would write it: as few and as large calls as there are."""

    @abstractmethod
    def products(self, u: Tensor, parameters: dict[str, Tensor]) -> Callable[[], Any]:
        """The matrix products of one step and nothing else."""

    @abstractmethod
    def jax_step(self, u: Any, parameters: dict[str, Any]) -> Callable[[Any], Any]:
        """f in JAX, on JAX arrays."""

    @abstractmethod
    def flops(self, dim: int) -> int:
        """Floating-point operations in the products of one step of one row."""

    def activations(self, dim: int) -> int:
        """Activations evaluated in one step of one row."""
        return dim

    @abstractmethod
    def make_cell(self, leaves: dict[str, Tensor]) -> tuple[nn.Cell, dict[str, Tensor]]:
        """The cell that is this map, and its parameters by the names used here."""

    def linear_cell(self, leaves: dict[str, Tensor]) -> nn.Cell | None:
        """The same cell with the identity for its activation, or None where it has no such form."""
        return None


def load(cell: torch.nn.Module, values: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Give a cell's parameters these values; `names` says what they are called here -> in the cell."""
    first = next(iter(values.values()))
    cell.to(first.device, first.dtype)
    own = dict(cell.named_parameters())
    with torch.no_grad():
        for here, there in names.items():
            own[there].copy_(values[here])
    return {here: own[there] for here, there in names.items()}


class AffineMap(Map):
    """f = tanh(z W^T + u)"""

    cell = "affine"

    def parameters(self, matrix: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": matrix}  # [D, D]

    def step(self, u: Tensor, parameters: dict[str, Tensor]) -> Step:
        weight_t = parameters["weight"].T
        return lambda z: torch.tanh(torch.addmm(u, z, weight_t))

    def products(self, u: Tensor, parameters: dict[str, Tensor]) -> Callable[[], Any]:
        weight_t = parameters["weight"].T
        return lambda: torch.mm(u, weight_t)

    def jax_step(self, u: Any, parameters: dict[str, Any]) -> Callable[[Any], Any]:
        import jax.numpy as jnp

        return lambda z: jnp.tanh(u + z @ parameters["weight"].T)

    def flops(self, dim: int) -> int:
        return 2 * dim * dim

    def make_cell(self, leaves: dict[str, Tensor]) -> tuple[nn.Cell, dict[str, Tensor]]:
        return self._cell(leaves, "tanh")

    def linear_cell(self, leaves: dict[str, Tensor]) -> nn.Cell | None:
        return self._cell(leaves, "identity")[0]

    def _cell(self, leaves: dict[str, Tensor], activation: str) -> tuple[nn.Cell, dict[str, Tensor]]:
        dim = leaves["weight"].shape[0]
        cell = nn.AffineCell(dim, 1, activation=activation, bias=False)
        return cell, load(cell, leaves, {"weight": "weight"})


class MLPMap(Map):
    """f = W2 tanh(W1 (z + u)), W1 orthogonal and W2 = W W1^T, so that f' = W near 0."""

    cell = "mlp"

    def parameters(self, matrix: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        dim = matrix.shape[0]
        w1, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
        return {"w1": w1, "w2": matrix @ w1.T}  # [D, D] both

    def step(self, u: Tensor, parameters: dict[str, Tensor]) -> Step:
        w1_t, w2_t = parameters["w1"].T, parameters["w2"].T
        return lambda z: torch.mm(torch.tanh(torch.mm(z + u, w1_t)), w2_t)

    def products(self, u: Tensor, parameters: dict[str, Tensor]) -> Callable[[], Any]:
        w1_t, w2_t = parameters["w1"].T, parameters["w2"].T
        return lambda: torch.mm(torch.mm(u, w1_t), w2_t)

    def jax_step(self, u: Any, parameters: dict[str, Any]) -> Callable[[Any], Any]:
        import jax.numpy as jnp

        return lambda z: jnp.tanh((z + u) @ parameters["w1"].T) @ parameters["w2"].T

    def flops(self, dim: int) -> int:
        return 4 * dim * dim

    def make_cell(self, leaves: dict[str, Tensor]) -> tuple[nn.Cell, dict[str, Tensor]]:
        return self._cell(leaves, "tanh")

    def linear_cell(self, leaves: dict[str, Tensor]) -> nn.Cell | None:
        return self._cell(leaves, "identity")[0]

    def _cell(self, leaves: dict[str, Tensor], activation: str) -> tuple[nn.Cell, dict[str, Tensor]]:
        hidden, dim = leaves["w1"].shape
        cell = nn.MLPCell(dim, 1, hidden_dim=hidden, activation=activation, bias=False, skip=0.0, norm="none")
        return cell, load(cell, leaves, {"w1": "w1", "w2": "w2"})


class GatedMap(Map):
    """f = (1 - s) z + s tanh(W z + u_c), s = sigmoid(W_s z + u_s): the affine map's fixed point, more slowly."""

    cell = "gated"

    def parameters(self, matrix: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        dim = matrix.shape[0]
        gate = 0.3 / dim**0.5 * torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        return {"weight": torch.cat([gate, matrix])}  # [2 D, D]: gate, candidate

    def injection(self, batch: int, dim: int, scale: float, generator: torch.Generator) -> Tensor:
        u = scale * torch.randn(batch, 2 * dim, generator=generator, dtype=torch.float64)
        u[:, :dim] += 2.0  # gates mostly open, as a trained one's
        return u  # [B, 2 D]

    def step(self, u: Tensor, parameters: dict[str, Tensor]) -> Step:
        weight_t = parameters["weight"].T

        def f(z: Tensor) -> Tensor:
            gate, candidate = torch.addmm(u, z, weight_t).chunk(2, dim=1)
            return torch.lerp(z, torch.tanh(candidate), torch.sigmoid(gate))

        return f

    def products(self, u: Tensor, parameters: dict[str, Tensor]) -> Callable[[], Any]:
        weight_t = parameters["weight"].T
        z = u[:, : weight_t.shape[0]].contiguous()
        return lambda: torch.mm(z, weight_t)

    def jax_step(self, u: Any, parameters: dict[str, Any]) -> Callable[[Any], Any]:
        import jax
        import jax.numpy as jnp

        def f(z: Any) -> Any:
            gate, candidate = jnp.split(u + z @ parameters["weight"].T, 2, axis=1)
            return z + jax.nn.sigmoid(gate) * (jnp.tanh(candidate) - z)

        return f

    def flops(self, dim: int) -> int:
        return 4 * dim * dim

    def activations(self, dim: int) -> int:
        return 2 * dim

    def make_cell(self, leaves: dict[str, Tensor]) -> tuple[nn.Cell, dict[str, Tensor]]:
        dim = leaves["weight"].shape[1]
        cell = nn.GatedCell(dim, 1, bias=False)
        return cell, load(cell, leaves, {"weight": "weight"})


MAPS: dict[str, Map] = {m.cell: m for m in (AffineMap(), MLPMap(), GatedMap())}
