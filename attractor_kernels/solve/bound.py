"""A cell bound to its input: a map z -> f(z) the package knows, so that one operator can solve it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backends.reference.kernels import MAPS
from ..ops._declare import OPERATORS


class BoundCell:
    """f(z) of the operator `operator` with everything but z held. Called on z [*batch, D], it gives f(z).

    held: the operator's tensors after z0; the first of them is u [*batch, U], the others do not depend on the input.
    """

    __slots__ = ("constants", "device", "dtype", "held", "name", "operator", "shape")

    def __init__(self, name: str, state_dim: int, held: tuple[Any, ...], constants: tuple[Any, ...]) -> None:
        self.name = name
        self.operator = OPERATORS[name]
        u: Tensor = held[0]
        self.shape = (*u.shape[:-1], state_dim)  # of z, as are dtype and device
        self.dtype = u.dtype
        self.device = u.device
        self.held = held
        self.constants = constants

    def __call__(self, z: Tensor) -> Tensor:
        return MAPS[self.name](z, *self.held, *self.constants)

    def needs_gradient(self, z0: Tensor) -> bool:
        if z0.requires_grad:
            return True
        for t in self.held:  # noqa: SIM110 (any() over a generator takes twice as long, and small solves are short)
            if t is not None and t.requires_grad:
                return True
        return False
