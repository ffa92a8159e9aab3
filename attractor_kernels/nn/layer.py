"""The layer z* = module(z*, x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..info import SolveInfo
from ..options import Auto, Gradient, Implicit, Solver, check_bool
from ..solve.fixed_point import solve
from ..solve.maps import ModuleMap
from ..solve.spec import HALVES, default_precision, make_spec
from .cells import Cell


class FixedPoint(nn.Module):
    """The fixed point z* = module(z*, x) as a layer.

    Args:
        module: maps (z, x) to the next z, of z's shape, dtype and device. A cell is solved in one fused call.
        solver, gradient, rtol, atol, max_steps, min_steps, batch_ndim, mixing_ndim, keep, trace, precision, backend:
            as in `attractor_kernels.fixed_point`, with the same defaults. On an x of more than two dimensions a cell
            takes its fused path with batch_ndim=x.ndim - 1.
        graph: record loops on a CUDA device. The solve of a module that is no cell, and that of its gradient, is one
            launch from the second of its kind on: of the same shapes, options, plans, settings of torch and state
            of the module. As with any CUDA graph, the module's Python does not run again. The values of its input,
            parameters and buffers are read anew, and its attributes compared; what else its Python may read or do
            (globals, the inside of objects it holds) is frozen as it was recorded. A module that draws random numbers,
            changes a buffer, has hooks, is compiled, lets data decide what it does, or uses other tensors is not
            recorded, and `info.backend` says why. Default True.

    Attributes:
        info: the `SolveInfo` of the last forward, None before the first.

    Raises:
        TypeError, ValueError: an option is not as in `fixed_point`; the message names it.

    >>> import attractor_kernels as ak
    >>> layer = FixedPoint(ak.nn.AffineCell(8, 3))
    >>> layer(torch.randn(5, 3)).shape
    torch.Size([5, 8])
    >>> bool(layer.info.converged.all())
    True
    """

    info: SolveInfo | None

    def __init__(
        self,
        module: nn.Module,
        *,
        solver: Solver = Auto(),
        gradient: Gradient = Implicit(),
        rtol: float = 1e-4,
        atol: float = 0.0,
        max_steps: int = 50,
        min_steps: int = 0,
        batch_ndim: int = 1,
        mixing_ndim: int | None = None,
        keep: str = "last",
        trace: bool = False,
        precision: str | None = None,
        backend: str = "auto",
        graph: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module mapping (z, x) to z, got {module!r}")
        self.module = module
        options = (solver, gradient, rtol, atol, max_steps, min_steps, batch_ndim, mixing_ndim, keep, trace)
        # precision=None is decided anew by every forward.
        full, mixed = (precision, precision) if precision is not None else ("full", "mixed")
        self._full = make_spec(*options, full, backend)
        self._mixed = make_spec(*options, mixed, backend)
        self._not_recorded = None if check_bool("graph", graph) else "graph=False"
        self.info = None

    def forward(self, x: Tensor, z0: Tensor | None = None) -> Tensor:
        """z* [*batch, *state] for the input x.

        z0: where the solve starts. None: `module.initial_state(x)` if there is such a method, as cells have (zeros
        [*batch, state_dim]), else zeros like x.
        """
        module = self.module
        if z0 is None:
            initial_state = getattr(module, "initial_state", torch.zeros_like)
            z0 = initial_state(x)
        spec = self._full if default_precision() == "full" and getattr(z0, "dtype", None) not in HALVES else self._mixed
        f = module.bind(x) if isinstance(module, Cell) else ModuleMap(module, x, self._not_recorded)
        z, self.info = solve(f, z0, spec)
        return z

    def extra_repr(self) -> str:
        spec = self._full
        return f"solver={spec.solver}, gradient={spec.gradient}, rtol={spec.rtol:g}, max_steps={spec.max_steps}"
