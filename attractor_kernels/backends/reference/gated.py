"""The gated cell (a GRU without reset gate), forward, adjoint and tangent.

    (a_s, a_c) = z W^T + u,   s = sigmoid(a_s),   f(z) = (1 - s) * z + s * tanh(a_c)               (rows are problems)

With c = 1 - s, q1 = (tanh(a_c) - z) s (1 - s), q2 = s (1 - tanh(a_c)^2) and W = [W_s; W_c]:

    adjoint   A w = c * w + [q1 * w, q2 * w] W                  (A = J^T)
    tangent   T y = c * y + q1 * (y W_s^T) + q2 * (y W_c^T)     (T = J)

Both belong to the bilinear form <y, A w> = <w, T y>; its derivatives (`bilinear_gradients`) serve the adjoint of
either. Parameters: dL/du = [q1 * w, q2 * w], dL/dW = (dL/du)^T z.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def forward(z: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    """z [B, D], u [B, 2D], weight [2D, D]."""
    gate, candidate = (z @ weight.mT + u).chunk(2, -1)
    return torch.lerp(z, torch.tanh(candidate), torch.sigmoid(gate))


def linearise(z: Tensor, u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """q = [q1, q2] [B, 2D] and c [B, D]."""
    gate, candidate = (z @ weight.mT + u).chunk(2, -1)
    s, t = torch.sigmoid(gate), torch.tanh(candidate)
    return torch.cat([(t - z) * s * (1 - s), s * (1 - t.square())], -1), 1 - s


def adjoint(w: Tensor, q: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    """A w."""
    return c * w + (q * torch.cat([w, w], -1)) @ weight


def tangent(y: Tensor, q: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    """T y."""
    first, second = (q * (y @ weight.mT)).chunk(2, -1)
    return c * y + first + second


class BilinearGradients(NamedTuple):
    q: Tensor
    c: Tensor
    weight: Tensor


def bilinear_gradients(w: Tensor, y: Tensor, q: Tensor, c: Tensor, weight: Tensor) -> BilinearGradients:
    """The gradient of <y, A w> = <w, T y> with w and y held."""
    ww = torch.cat([w, w], -1)
    return BilinearGradients(ww * (y @ weight.mT), w * y, (q * ww).mT @ y)
