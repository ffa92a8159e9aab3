"""The map of every solving operator written out in plain torch, float64, beside the operator's own arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor_kernels.ops._declare import Tail

OPS = torch.ops.attractor_kernels
REFERENCE = torch.ops.attractor_kernels_reference
ACTIVATIONS = {
    "identity": (0, lambda a: a),
    "tanh": (1, torch.tanh),
    "relu": (2, torch.relu),
    "sigmoid": (3, torch.sigmoid),
    "softplus": (4, torch.nn.functional.softplus),
    "gelu": (5, torch.nn.functional.gelu),
    "silu": (7, torch.nn.functional.silu),
    "relu2": (8, lambda a: torch.relu(a) ** 2),
    "swiglu": (9, None),
}
NONE, LAYER, RMS = range(3)
PICARD, ANDERSON, AUTO = range(3)
EPS = 1e-5


def tail(
    solver: int = PICARD,
    *,
    max_steps: int = 5,
    rtol: float = 0.0,
    keep_best: bool = False,
    trace: bool = False,
    mixed: bool = False,
) -> Tail:
    return Tail(solver, 5, 1.0, 1e-8, rtol, 0.0, max_steps, 0, keep_best, trace, mixed)


@dataclass
class Case:
    """An operator, its tensors and constants in float64, and the map it iterates, written independently here."""

    op: str
    tensors: tuple[Tensor | None, ...]
    constants: tuple[float | int, ...]
    f: Callable[[Tensor], Tensor]

    def run(self, options: Tail, dtype: torch.dtype = torch.float64, rows: slice | Tensor = slice(None), ops=OPS):
        batch = self.tensors[0].shape[0]
        per_row = BATCHED[self.op]
        tensors = [
            None if t is None else (t[rows].contiguous() if i in per_row else t).to(dtype)
            for i, t in enumerate(self.tensors)
        ]
        assert all(t is None or t.shape[0] == batch for t in (self.tensors[i] for i in per_row))
        return getattr(ops, self.op)(*tensors, *self.constants, *options)

    def iterate(self, steps: int) -> Tensor:
        """The iterate a Picard solve of `steps` evaluations returns."""
        z = self.tensors[0]
        for _ in range(steps - 1):
            z = self.f(z)
        return z


# Which tensors have a row a problem.
BATCHED = {
    "solve_affine": (0, 1, 4),
    "solve_mlp": (0, 1),
    "solve_mlp_adjoint": (0, 1, 2, 3, 4),
    "solve_mlp_tangent": (0, 1, 2, 3, 4),
    "solve_gated": (0, 1),
    "solve_gated_adjoint": (0, 1, 2, 3),
    "solve_gated_tangent": (0, 1, 2, 3),
}


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def contraction(outputs: int, inputs: int, norm: float) -> Tensor:
    w = normal(outputs, inputs)
    return w * (norm / torch.linalg.matrix_norm(w, 2)) if w.numel() else w


def make_affine(rows: int, dim: int, activation: str = "tanh", leak: bool = False, scaled: bool = False) -> Case:
    """Scaled, with the identity, it is its own adjoint and tangent."""
    code, phi = ACTIVATIONS[activation]
    weight, u = contraction(dim, dim, 0.6), normal(rows, dim, scale=0.5)
    leaks = 0.3 * torch.rand(dim, dtype=torch.float64) if leak else None
    scale = torch.rand(rows, dim, dtype=torch.float64) if scaled else None

    def f(z: Tensor) -> Tensor:
        y = phi(z @ weight.T + u) * (1 if scale is None else scale)
        return y if leaks is None else leaks * z + y

    return Case("solve_affine", (normal(rows, dim), u, weight, leaks, scale), (code, 0), f)


def make_mlp(
    rows: int,
    dim: int,
    hidden: int,
    activation: str = "tanh",
    norm: int = NONE,
    leak: bool = False,
    skip: float = 0.0,
    bias: bool = True,
) -> Case:
    code, phi = ACTIVATIONS[activation]
    width = 2 * hidden if activation == "swiglu" else hidden
    w1, w2 = contraction(width, dim, 0.9), contraction(dim, hidden, 0.4)
    b1, b2 = (normal(width, scale=0.3), normal(dim, scale=0.3)) if bias else (None, None)
    leaks = 0.3 * torch.rand(dim, dtype=torch.float64) if leak else None
    u = normal(rows, dim, scale=0.5)

    def f(z: Tensor) -> Tensor:
        y = z + u
        a = y @ w1.T + (0 if b1 is None else b1)
        h = torch.nn.functional.silu(a[:, :hidden]) * a[:, hidden:] if phi is None else phi(a)
        o = skip * y + h @ w2.T + (0 if b2 is None else b2)
        if norm == LAYER:
            o = torch.nn.functional.layer_norm(o, (dim,), eps=EPS)
        if norm == RMS:
            o = torch.nn.functional.rms_norm(o, (dim,), eps=EPS)
        return o if leaks is None else leaks * z + o

    return Case("solve_mlp", (normal(rows, dim), u, w1, b1, w2, b2, leaks), (skip, norm, EPS, code), f)


def make_mlp_linear(
    direction: str, rows: int, dim: int, hidden: int, gated: bool, norm: int, leak: bool, skip: float
) -> Case:
    """The adjoint and tangent of the cell, by the Jacobian of the norm written out as a matrix."""
    width = 2 * hidden if gated else hidden
    w1, w2 = contraction(width, dim, 0.7), contraction(dim, hidden, 0.7)
    q, v = torch.rand(rows, width, dtype=torch.float64), normal(rows, dim)
    n, rinv = normal(rows, dim), 0.3 + 0.2 * torch.rand(rows, dtype=torch.float64)
    leaks = 0.3 * torch.rand(dim, dtype=torch.float64) if leak else None
    n = torch.nn.functional.rms_norm(n - n.mean(-1, keepdim=True) if norm == LAYER else n, (dim,))
    jacobian_norm = torch.eye(dim, dtype=torch.float64).expand(rows, dim, dim)
    if norm != NONE:
        jacobian_norm = jacobian_norm - n[:, :, None] * n[:, None, :] / dim - (1 / dim if norm == LAYER else 0)
        jacobian_norm = jacobian_norm * rinv[:, None, None]
    fold = torch.eye(hidden, dtype=torch.float64).repeat(1, 2 if gated else 1)  # [H, width]
    inner = skip * torch.eye(dim, dtype=torch.float64) + (w2 @ fold) @ (q[:, :, None] * w1)
    jacobian = jacobian_norm @ inner + (0 if leaks is None else torch.diag(leaks))
    if direction == "adjoint":
        jacobian = jacobian.mT

    def f(w: Tensor) -> Tensor:
        return (jacobian @ w[:, :, None])[:, :, 0] + v

    tensors = (normal(rows, dim), v, q, n, rinv, w1, w2, leaks)
    return Case(f"solve_mlp_{direction}", tensors, (skip, norm), f)


def make_gated(rows: int, dim: int) -> Case:
    weight = contraction(2 * dim, dim, 0.6)
    u = normal(rows, 2 * dim, scale=0.5)

    def f(z: Tensor) -> Tensor:
        a = z @ weight.T + u
        s = torch.sigmoid(a[:, :dim])
        return (1 - s) * z + s * torch.tanh(a[:, dim:])

    return Case("solve_gated", (normal(rows, dim), u, weight), (), f)


def make_gated_linear(direction: str, rows: int, dim: int) -> Case:
    weight, v = contraction(2 * dim, dim, 0.5), normal(rows, dim)
    q, c = 0.5 * torch.rand(rows, 2 * dim, dtype=torch.float64), 0.5 * torch.rand(rows, dim, dtype=torch.float64)
    scaled = q[:, :, None] * weight
    jacobian = torch.diag_embed(c) + scaled[:, :dim] + scaled[:, dim:]
    if direction == "adjoint":
        jacobian = jacobian.mT

    def f(w: Tensor) -> Tensor:
        return (jacobian @ w[:, :, None])[:, :, 0] + v

    return Case(f"solve_gated_{direction}", (normal(rows, dim), v, q, c, weight), (), f)


def one_of_each(rows: int, dim: int = 33, hidden: int = 21) -> list[Case]:
    return [
        make_affine(rows, dim, leak=True),
        make_affine(rows, dim, "softplus"),
        make_affine(rows, dim, "identity", leak=True, scaled=True),
        make_mlp(rows, dim, hidden, "gelu", LAYER, leak=True, skip=1.0),
        make_mlp(rows, dim, hidden, "swiglu", RMS),
        make_mlp(rows, dim, hidden, "tanh", skip=0.2),
        make_mlp_linear("adjoint", rows, dim, hidden, True, RMS, True, 1.0),
        make_mlp_linear("adjoint", rows, dim, hidden, False, NONE, False, 0.0),
        make_mlp_linear("tangent", rows, dim, hidden, True, LAYER, True, 1.0),
        make_gated(rows, dim),
        make_gated_linear("adjoint", rows, dim),
        make_gated_linear("tangent", rows, dim),
    ]
