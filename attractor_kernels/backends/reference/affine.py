"""The affine cell, forward and adjoint.

    a = z W^T + u,    f(z) = leak * z + scale * phi(a)                                              (rows are problems)

With d = scale * phi'(a), J^T w = leak * w + (d * w) W. Write y = d * w for the solution of w = J^T w + v:

    y = leak * y + d * (y W + v)

which is again an affine cell, with phi = identity, scale = d, u = v and the weight transposed. Then

    dL/du = y,   dL/dW = y^T z,   w = (v + y W) / (1 - leak),   dL/dleak = sum w * z,   dL/dscale = w * phi(a)

so the family is closed under differentiation and derivatives of every order come from these formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activations import activate, derivative


def forward(
    z: Tensor,  # [B, D]
    u: Tensor,  # [B, D]
    weight: Tensor,  # [D, D]
    leak: Tensor | None,  # [D]
    scale: Tensor | None,  # [B, D]
    activation: int,
    pieces: int,
) -> Tensor:
    result = activate(activation, z @ weight.mT + u, pieces)
    if scale is not None:
        result = scale * result
    return result if leak is None else leak * z + result


def slope(
    z: Tensor, u: Tensor, weight: Tensor, scale: Tensor | None, activation: int, pieces: int
) -> tuple[Tensor | None, Tensor]:
    """phi(a) (None unless dL/dscale needs it) and d [B, D]."""
    a = torch.addmm(u, z, weight.mT)
    d = derivative(activation, a, pieces)
    return (None, d) if scale is None else (activate(activation, a, pieces), scale * d)


def adjoint(y: Tensor, v: Tensor, weight: Tensor, leak: Tensor | None) -> Tensor:
    """w [B, D] from y."""
    w = v + y @ weight
    return w if leak is None else w / (1 - leak)
