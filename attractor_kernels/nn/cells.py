"""Cells: parametrised maps f(z, x) whose whole solve is one fused call.

A cell computes once per solve what the input adds, u = inject(x), and is then a map of z alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backends.reference.activations import CODES, PARTIAL_RELU, SWIGLU
from ..backends.reference.mlp import NORMS
from ..options import check_bool, check_choice, check_float, check_int, check_number
from ..solve.bound import BoundCell

_SPREAD = 0.5  # spectral norm of a fresh recurrent weight: with slopes up to 1.13 the map contracts


class PartialRelu(NamedTuple):
    """The last `pieces` units rectified, the others linear."""

    pieces: int


def partial_relu(pieces: int) -> PartialRelu:
    """The activation of an almost-linear RNN: the last `pieces` units are relu, the rest the identity.

    >>> AffineCell(4, 2, activation=partial_relu(1)).activation
    PartialRelu(pieces=1)
    """
    return PartialRelu(check_int("pieces", pieces, low=0))


class Cell(nn.Module, ABC):
    """Base of the cells: f(z, x) = bind(x)(z).

    Attributes:
        state_dim: D, the size of a state.
        input_dim: size of an input.
    """

    input_weight: nn.Parameter
    _injected = 1  # size of u over the size of the state

    def __init__(self, state_dim: int, input_dim: int, bias: bool) -> None:
        super().__init__()
        self.state_dim = check_int("state_dim", state_dim, low=1)
        self.input_dim = check_int("input_dim", input_dim, low=1)
        check_bool("bias", bias)

    def inject(self, x: Tensor) -> Tensor:
        """What the input x [*batch, input_dim] adds: u [*batch, D] ([*batch, 2D] for a GatedCell)."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a Tensor, got {type(x).__name__}")
        weight = self.input_weight
        if x.dim() == 0 or x.shape[-1] != self.input_dim:
            raise ValueError(f"x must have shape [*batch, {self.input_dim}], got {list(x.shape)}")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x must have the cell's dtype {weight.dtype}, got {x.dtype}")
        if x.device != weight.device:
            raise ValueError(f"x must be on the cell's device {weight.device}, got {x.device}")
        u = torch.nn.functional.linear(x, weight, self._input_bias())
        return u if u.dtype == weight.dtype else u.to(weight.dtype)  # autocast

    def bind(self, x: Tensor) -> BoundCell:
        """The map z -> f(z, x) for `fixed_point`, with inject(x) computed once."""
        return self._bound(self.inject(x))

    def bind_injection(self, u: Tensor) -> BoundCell:
        """The map z -> f(z) for a given u = inject(x), [*batch, D] ([*batch, 2D] for a GatedCell)."""
        weight, width = self.input_weight, self._injected * self.state_dim
        if not isinstance(u, Tensor):
            raise TypeError(f"u must be a Tensor, got {type(u).__name__}")
        if u.dim() == 0 or u.shape[-1] != width:
            raise ValueError(f"u must have shape [*batch, {width}], got {list(u.shape)}")
        if u.dtype != weight.dtype:
            raise TypeError(f"u must have the cell's dtype {weight.dtype}, got {u.dtype}")
        if u.device != weight.device:
            raise ValueError(f"u must be on the cell's device {weight.device}, got {u.device}")
        return self._bound(u)

    def initial_state(self, x: Tensor) -> Tensor:
        """Zeros [*batch, D] for an input x [*batch, input_dim]."""
        return self.input_weight.new_zeros((*x.shape[:-1], self.state_dim))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """f(z, x), once; z [*batch, D], x [*batch, input_dim]."""
        return self.bind(x)(z)

    def reset_parameters(self) -> None:
        """Draws new parameters: recurrent weights orthogonal times 0.5, input weights of unit gain, biases zero."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    if name != "leak":
                        parameter.zero_()
                elif name == "input_weight":
                    parameter.normal_(std=self.input_dim**-0.5)
                else:
                    self._reset_weight(parameter)

    def _reset_weight(self, weight: Tensor) -> None:
        room = 1.0
        leak = getattr(self, "leak", None)
        if leak is not None:
            room = max(1.0 - float(leak.abs().max()), 0.1)
        _orthogonal(weight, _SPREAD * room)

    @abstractmethod
    def _input_bias(self) -> Tensor | None: ...

    @abstractmethod
    def _bound(self, u: Tensor) -> BoundCell: ...


def _activation(value: Any, allowed: tuple[str, ...], state_dim: int) -> tuple[int, int]:
    """An activation's code and pieces."""
    if isinstance(value, PartialRelu) and "partial_relu" in allowed:
        return PARTIAL_RELU, check_int("activation=partial_relu(pieces)", value.pieces, low=0, high=state_dim)
    if value == "partial_relu" and "partial_relu" in allowed:
        raise ValueError("activation 'partial_relu' needs its number of units: partial_relu(pieces)")
    return CODES[check_choice("activation", value, tuple(name for name in allowed if name != "partial_relu"))], 0


def _leak(value: Any, state_dim: int, factory: dict[str, Any]) -> nn.Parameter | None:
    """The learned leak [D] from its start: a number, a tensor [D], or None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.shape != (state_dim,):
            raise ValueError(f"leak must have shape [{state_dim}], got {list(value.shape)}")
        return nn.Parameter(value.detach().clone().to(**factory))
    return nn.Parameter(torch.full((state_dim,), check_number("leak", value), **factory))


def _orthogonal(weight: Tensor, gain: float) -> None:
    """Drawn in float32, because the factorisation behind it knows no half precision."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight.copy_(nn.init.orthogonal_(torch.empty_like(weight, dtype=torch.float32), gain))
    else:
        nn.init.orthogonal_(weight, gain)


def _parameter(*shape: int, **factory: Any) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, **factory))


class AffineCell(Cell):
    """f(z, x) = leak * z + phi(z W^T + u), u = x V^T + b: tanh DEQ, reservoir, piecewise-linear and almost-linear RNN.

    Args:
        state_dim: D.
        input_dim: size of x.
        activation: "identity", "tanh" (default), "relu", "sigmoid", "softplus", "gelu" (exact), "silu", "relu2", or
            `partial_relu(P)`.
        bias: whether u has a bias. Default True.
        leak: start of the learned leak, a number or a tensor [D]; None (default): no leak term. Below 1 in size for
            the map to contract, and not exactly 1.
        device, dtype: of the parameters.

    Parameters: weight W [D, D], input_weight V [D, input_dim], bias b [D] or None, leak [D] or None. A fresh W is
    orthogonal times 0.5 * (1 - max |leak|), so that the map contracts for slopes of phi up to 2 (relu2 aside).

    >>> cell = AffineCell(8, 3)
    >>> cell(torch.zeros(5, 8), torch.randn(5, 3)).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        state_dim: int,
        input_dim: int,
        *,
        activation: str | PartialRelu = "tanh",
        bias: bool = True,
        leak: float | Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_dim, input_dim, bias)
        factory = {"device": device, "dtype": dtype}
        allowed = tuple(name for name, code in CODES.items() if code != SWIGLU)
        self._constants = _activation(activation, allowed, state_dim)
        self.activation = activation
        self.weight = _parameter(state_dim, state_dim, **factory)
        self.input_weight = _parameter(state_dim, input_dim, **factory)
        self.bias = _parameter(state_dim, **factory) if bias else None
        self.leak = _leak(leak, state_dim, factory)
        self.reset_parameters()

    def _input_bias(self) -> Tensor | None:
        return self.bias

    def _bound(self, u: Tensor) -> BoundCell:
        return BoundCell("solve_affine", self.state_dim, (u, self.weight, self.leak, None), self._constants)

    def extra_repr(self) -> str:
        return f"{self.state_dim}, {self.input_dim}, activation={self.activation!r}"


class MLPCell(Cell):
    """f(z, x) = leak * z + norm(skip * (z + u) + w2 phi(w1 (z + u) + b1) + b2), u = x V^T.

    Args:
        state_dim: D.
        input_dim: size of x.
        hidden_dim: H. Default D.
        activation: "identity", "tanh", "relu" (default), "sigmoid", "softplus", "gelu" (exact), "silu", "relu2", or
            "swiglu", whose phi is silu(first half) * second half of 2H units.
        norm: "none" (default), "layer" or "rms", over the state, without weights.
        skip: weight of the residual connection. Default 0.
        bias: whether there are b1 and b2. Default True.
        leak: as in `AffineCell`.
        norm_eps: added to the variance or mean square. Default 1e-5.
        device, dtype: of the parameters.

    Parameters: w1 [H, D] ([2H, D] with "swiglu"), b1 [H] ([2H]) or None, w2 [D, H], b2 [D] or None, input_weight V
    [D, input_dim], leak [D] or None. Fresh w1 and w2 are orthogonal times 0.5 (w2 times 1 - max |leak| as well), so
    without a norm and with skip 0 the map contracts for slopes of phi up to 4. A norm rescales and may undo that.

    >>> cell = MLPCell(8, 3, hidden_dim=16, activation="swiglu", norm="rms", skip=1.0)
    >>> cell(torch.zeros(5, 8), torch.randn(5, 3)).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        state_dim: int,
        input_dim: int,
        *,
        hidden_dim: int | None = None,
        activation: str = "relu",
        norm: str = "none",
        skip: float = 0.0,
        bias: bool = True,
        leak: float | Tensor | None = None,
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_dim, input_dim, bias)
        factory = {"device": device, "dtype": dtype}
        self.hidden_dim = state_dim if hidden_dim is None else check_int("hidden_dim", hidden_dim, low=1)
        allowed = tuple(name for name, code in CODES.items() if code != PARTIAL_RELU)
        code, _ = _activation(activation, allowed, state_dim)
        norm_code = NORMS[check_choice("norm", norm, tuple(NORMS))]
        self._constants = (check_number("skip", skip), norm_code, check_float("norm_eps", norm_eps), code)
        self.activation, self.norm, self.skip = activation, norm, skip
        width = 2 * self.hidden_dim if code == SWIGLU else self.hidden_dim
        self.w1 = _parameter(width, state_dim, **factory)
        self.b1 = _parameter(width, **factory) if bias else None
        self.w2 = _parameter(state_dim, self.hidden_dim, **factory)
        self.b2 = _parameter(state_dim, **factory) if bias else None
        self.input_weight = _parameter(state_dim, input_dim, **factory)
        self.leak = _leak(leak, state_dim, factory)
        self.reset_parameters()

    def _input_bias(self) -> None:
        return None

    def _bound(self, u: Tensor) -> BoundCell:
        held = (u, self.w1, self.b1, self.w2, self.b2, self.leak)
        return BoundCell("solve_mlp", self.state_dim, held, self._constants)

    def extra_repr(self) -> str:
        return (
            f"{self.state_dim}, {self.input_dim}, hidden_dim={self.hidden_dim}, activation={self.activation!r}, "
            f"norm={self.norm!r}, skip={self.skip}"
        )


class GatedCell(Cell):
    """f(z, x) = (1 - s) * z + s * tanh(a_c), s = sigmoid(a_s), (a_s, a_c) = z W^T + u, u = x V^T + b: a GRU's form.

    Args:
        state_dim: D.
        input_dim: size of x.
        bias: whether u has a bias. Default True.
        device, dtype: of the parameters.

    Parameters: weight W [2D, D] (the gate's rows, then the candidate's), input_weight V [2D, input_dim], bias b [2D]
    or None. Both halves of a fresh W are orthogonal times 0.5, so that the map contracts near its fixed point.

    >>> cell = GatedCell(8, 3)
    >>> cell(torch.zeros(5, 8), torch.randn(5, 3)).shape
    torch.Size([5, 8])
    """

    _injected = 2

    def __init__(
        self,
        state_dim: int,
        input_dim: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(state_dim, input_dim, bias)
        factory = {"device": device, "dtype": dtype}
        self.weight = _parameter(2 * state_dim, state_dim, **factory)
        self.input_weight = _parameter(2 * state_dim, input_dim, **factory)
        self.bias = _parameter(2 * state_dim, **factory) if bias else None
        self.reset_parameters()

    def _reset_weight(self, weight: Tensor) -> None:
        for half in weight.chunk(2):
            _orthogonal(half, _SPREAD)

    def _input_bias(self) -> Tensor | None:
        return self.bias

    def _bound(self, u: Tensor) -> BoundCell:
        return BoundCell("solve_gated", self.state_dim, (u, self.weight), ())

    def extra_repr(self) -> str:
        return f"{self.state_dim}, {self.input_dim}"
