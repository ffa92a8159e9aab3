"""The MLP cell, forward, adjoint and tangent.

    x = z + u,   a = x W1^T + b1,   h = phi(a)   or, gated (swiglu), h = silu(a') * a'' with a = (a', a'')
    o = skip * x + h W2^T + b2,   n = norm(o),   f(z) = leak * z + n                               (rows are problems)

    norm: none n = o;   rms n = o * rinv, rinv = (mean o^2 + eps)^-1/2;   layer: the same of o - mean o

The derivative of the norm is the symmetric map N x = rinv * (x - [mean x, layer only] - n * mean(n x)). With q = dh/da
(both halves when gated) and r = t W2, repeated for the two halves when gated:

    adjoint   A w = leak * w + skip * t + (q * r) W1,   t = N w                                        (A = J^T)
    tangent   T y = leak * y + N (skip * y + s W2^T),   s = q * (y W1^T), its halves added when gated  (T = J)

Both are linear in their argument and belong to the one bilinear form <y, A w> = <w, T y>, whose derivatives with
respect to q, n, rinv, W1, W2 and leak (`bilinear_gradients`) serve the adjoint of either. The parameters' gradients
are those of <w, f>.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .activations import SWIGLU, activate, derivative

NONE, LAYER, RMS = range(3)
NORMS = {"none": NONE, "layer": LAYER, "rms": RMS}


class Linearised(NamedTuple):
    x: Tensor  # [B, D] z + u
    h: Tensor  # [B, H]
    q: Tensor  # [B, H], or [B, 2H] when gated
    n: Tensor  # [B, D] normalised output
    rinv: Tensor  # [B]


def _hidden(a: Tensor, activation: int) -> Tensor:
    if activation != SWIGLU:
        return activate(activation, a)
    gate, value = a.chunk(2, -1)
    return torch.nn.functional.silu(gate) * value


def _normalise(o: Tensor, norm: int, eps: float) -> tuple[Tensor, Tensor]:
    if norm == NONE:
        return o, o.new_ones(o.shape[:-1])
    if norm == LAYER:
        o = o - o.mean(-1, keepdim=True)
    rinv = torch.rsqrt(o.square().mean(-1) + eps)
    return o * rinv.unsqueeze(-1), rinv


def forward(
    z: Tensor,  # [B, D]
    u: Tensor,  # [B, D]
    w1: Tensor,  # [H, D], or [2H, D] when gated
    b1: Tensor | None,  # [H] or [2H]
    w2: Tensor,  # [D, H]
    b2: Tensor | None,  # [D]
    leak: Tensor | None,  # [D]
    skip: float,
    norm: int,
    norm_eps: float,
    activation: int,
) -> Tensor:
    x = z + u
    h = _hidden(torch.nn.functional.linear(x, w1, b1), activation)
    o = torch.nn.functional.linear(h, w2, b2)
    n = _normalise(o + skip * x if skip else o, norm, norm_eps)[0]
    return n if leak is None else leak * z + n


def linearise(
    z: Tensor,
    u: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    skip: float,
    norm: int,
    norm_eps: float,
    activation: int,
) -> Linearised:
    x = z + u
    a = torch.nn.functional.linear(x, w1, b1)
    h = _hidden(a, activation)
    if activation == SWIGLU:
        gate, value = a.chunk(2, -1)
        q = torch.cat([derivative(7, gate) * value, activate(7, gate)], -1)
    else:
        q = derivative(activation, a)
    if norm == NONE:
        return Linearised(x, h, q, x, x.new_ones(x.shape[0]))  # n is not used
    n, rinv = _normalise(skip * x + torch.nn.functional.linear(h, w2, b2), norm, norm_eps)
    return Linearised(x, h, q, n, rinv)


def through_norm(w: Tensor, n: Tensor, rinv: Tensor, norm: int) -> Tensor:
    """N w."""
    if norm == NONE:
        return w
    t = w - n * (n * w).mean(-1, keepdim=True)
    if norm == LAYER:
        t = t - w.mean(-1, keepdim=True)
    return t * rinv.unsqueeze(-1)


def adjoint(
    w: Tensor, q: Tensor, n: Tensor, rinv: Tensor, w1: Tensor, w2: Tensor, leak: Tensor | None, skip: float, norm: int
) -> Tensor:
    """A w."""
    t = through_norm(w, n, rinv, norm)
    result = skip * t + _unfold(t @ w2, q) @ w1
    return result if leak is None else leak * w + result


def tangent(
    y: Tensor, q: Tensor, n: Tensor, rinv: Tensor, w1: Tensor, w2: Tensor, leak: Tensor | None, skip: float, norm: int
) -> Tensor:
    """T y."""
    s = _fold(q * (y @ w1.mT), w2)
    result = through_norm(skip * y + s @ w2.mT, n, rinv, norm)
    return result if leak is None else leak * y + result


def _unfold(r: Tensor, q: Tensor) -> Tensor:
    """q * r, with r repeated for both halves when gated."""
    return q * (r if q.shape[-1] == r.shape[-1] else torch.cat([r, r], -1))


def _fold(s: Tensor, w2: Tensor) -> Tensor:
    """The two halves added when gated."""
    if s.shape[-1] == w2.shape[-1]:
        return s
    first, second = s.chunk(2, -1)
    return first + second


def parameter_gradients(
    needs: tuple[bool, ...],  # of u, w1, b1, w2, b2, leak
    w: Tensor,
    z: Tensor,
    at: Linearised,
    w1: Tensor,
    w2: Tensor,
    skip: float,
    norm: int,
) -> tuple[Tensor | None, ...]:
    """The gradients of <w, f(z, parameters)> with w and z held."""
    t = through_norm(w, at.n, at.rinv, norm)
    da = _unfold(t @ w2, at.q)
    return (
        skip * t + da @ w1 if needs[0] else None,
        da.mT @ at.x if needs[1] else None,
        da.sum(0) if needs[2] else None,
        t.mT @ at.h if needs[3] else None,
        t.sum(0) if needs[4] else None,
        (w * z).sum(0) if needs[5] else None,
    )


class BilinearGradients(NamedTuple):
    q: Tensor
    n: Tensor
    rinv: Tensor
    w1: Tensor
    w2: Tensor
    leak: Tensor


def bilinear_gradients(
    w: Tensor, y: Tensor, q: Tensor, n: Tensor, rinv: Tensor, w1: Tensor, w2: Tensor, skip: float, norm: int
) -> BilinearGradients:
    """The gradient of <y, A w> = <w, T y> with w and y held."""
    t = through_norm(w, n, rinv, norm)
    r = t @ w2
    k = y @ w1.mT
    s = _fold(q * k, w2)
    grad_q = _unfold(r, k)  # k * r
    dt = skip * y + s @ w2.mT  # <y, A w> = <dt, N w> + ...
    if norm == NONE:
        grad_n, grad_rinv = torch.zeros_like(n), torch.zeros_like(rinv)
    else:
        nw, nd = (n * w).mean(-1, keepdim=True), (n * dt).mean(-1, keepdim=True)
        grad_n = -rinv.unsqueeze(-1) * (dt * nw + w * nd)
        grad_rinv = (dt * t).sum(-1) / rinv
    return BilinearGradients(grad_q, grad_n, grad_rinv, _unfold(r, q).mT @ y, t.mT @ s, (w * y).sum(0))
