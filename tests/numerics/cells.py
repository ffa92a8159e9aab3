"""Cells of every form, and the same maps written out in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import attractor_kernels as ak


@dataclass(frozen=True)
class Form:
    make: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    smooth: bool = True  # twice differentiable everywhere


ACTIVATIONS = ["identity", "tanh", "relu", "sigmoid", "softplus", "gelu", "silu", "relu2"]
SMOOTH = {"identity", "tanh", "sigmoid", "softplus", "gelu", "silu", "swiglu"}
LEAK = 0.3

FORMS: dict[str, Form] = {}
for _name in ACTIVATIONS:
    FORMS[f"affine-{_name}"] = Form(ak.nn.AffineCell, {"activation": _name}, _name in SMOOTH)
for _name in (*ACTIVATIONS, "swiglu"):
    FORMS[f"mlp-{_name}"] = Form(ak.nn.MLPCell, {"activation": _name}, _name in SMOOTH)
FORMS |= {
    "affine-leaky": Form(ak.nn.AffineCell, {"activation": "tanh", "leak": LEAK}),
    "affine-partial": Form(ak.nn.AffineCell, {"activation": "partial_relu", "leak": LEAK}, False),
    "affine-bare": Form(ak.nn.AffineCell, {"activation": "tanh", "bias": False}),
    "mlp-leaky": Form(ak.nn.MLPCell, {"activation": "tanh", "leak": LEAK}),
    "mlp-skip": Form(ak.nn.MLPCell, {"activation": "gelu", "skip": 0.4}),
    "mlp-bare": Form(ak.nn.MLPCell, {"activation": "tanh", "bias": False}),
    "mlp-layer": Form(ak.nn.MLPCell, {"activation": "gelu", "norm": "layer", "skip": 0.5}),
    "mlp-rms": Form(ak.nn.MLPCell, {"activation": "swiglu", "norm": "rms", "skip": 1.0}),
    "mlp-rms-leaky": Form(ak.nn.MLPCell, {"activation": "tanh", "norm": "rms", "skip": 0.5, "leak": 0.2}),
    "gated": Form(ak.nn.GatedCell),
    "gated-bare": Form(ak.nn.GatedCell, {"bias": False}),
}
ALL = list(FORMS)
# One of each kernel, with the branches that differ: leak, a norm, gating.
KINDS = ["affine-tanh", "affine-leaky", "mlp-relu", "mlp-rms", "gated"]
FUSED = [*KINDS, "affine-partial", "affine-softplus", "mlp-swiglu", "mlp-layer", "mlp-skip"]

# Recurrent weights of this spectral norm make every form contract (slopes are at most 1.13; norms rescale).
SPREAD = 0.6
# relu2 has no bounded slope, and norms amplify what is added to a small output.
SMALL = {"affine-relu2": 0.2, "mlp-relu2": 0.35, "mlp-layer": 0.5, "mlp-rms": 0.5, "mlp-rms-leaky": 0.35}


def solve_places(cell: Any, u: Tensor, places: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """What a solve from zero of these rows of u = cell.inject(x) gives, all there is."""
    with torch.no_grad():
        z0 = u.new_zeros(len(places), cell.state_dim)
        z, info = ak.fixed_point(cell.bind_injection(u[places]), z0, **options)
    return z, info.steps, info.residual, info.status


def make_cell(name: str, size: int, inputs: int, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """A contracting cell of this form; the same values (rounded) in every dtype."""
    form, generator = FORMS[name], torch.Generator().manual_seed(seed + 31 * size)
    options = dict(form.options)
    if options.get("activation") == "partial_relu":
        options["activation"] = ak.nn.partial_relu((size + 1) // 2)
    if form.make is ak.nn.MLPCell:
        options["hidden_dim"] = size + 3
    cell = form.make(size, inputs, **options).double()
    spread = SMALL.get(name, SPREAD)
    with torch.no_grad():
        for key, p in cell.named_parameters():
            values = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            if key == "leak":
                p.copy_(LEAK * torch.linspace(-1, 1, size))
            elif key == "input_weight":
                p.copy_(values / inputs**0.5)
                if form.make is ak.nn.GatedCell:  # a gate that closes makes any solve slow
                    p[:size] *= 0.3
            elif p.dim() == 2:
                p.copy_(spread * values / torch.linalg.matrix_norm(values, 2))
            else:
                p.copy_(0.3 * values)
    return cell.to(dtype)


PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda a: a,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": lambda a: torch.logaddexp(a, torch.zeros_like(a)),
    "gelu": lambda a: a * (1 + torch.erf(a / 2**0.5)) / 2,
    "silu": lambda a: a * torch.sigmoid(a),
    "relu2": lambda a: torch.relu(a) ** 2,
}


def plain_map(cell: nn.Module, x: Tensor, injected: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """z -> f(z, x) from the cell's parameters, as its documentation has it, in x's dtype.

    `injected` is the value of what the input adds, where that was rounded; its derivative stays that of x.
    """
    p = {key: value.to(x.dtype) for key, value in cell.named_parameters()}
    u = x @ p["input_weight"].mT + p.get("bias", 0.0)
    if injected is not None:
        u = u + (injected.to(x.dtype) - u).detach()
    leak = p.get("leak", torch.zeros((), dtype=x.dtype))
    if isinstance(cell, ak.nn.GatedCell):
        return lambda z: _gated(z, u, p["weight"])
    if isinstance(cell, ak.nn.AffineCell):
        return lambda z: leak * z + _phi(cell.activation, z @ p["weight"].mT + u)
    return lambda z: leak * z + _mlp(cell, p, z + u)


def _gated(z: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    size = z.shape[-1]
    a = z @ weight.mT + u
    s = torch.sigmoid(a[..., :size])
    return (1 - s) * z + s * torch.tanh(a[..., size:])


def _phi(activation: Any, a: Tensor) -> Tensor:
    if isinstance(activation, str):
        return PHI[activation](a)
    first = a.shape[-1] - activation.pieces
    return torch.cat([a[..., :first], torch.relu(a[..., first:])], dim=-1)


def _mlp(cell: nn.Module, p: dict[str, Tensor], y: Tensor) -> Tensor:
    a = y @ p["w1"].mT + p.get("b1", 0.0)
    if cell.activation == "swiglu":
        half = a.shape[-1] // 2
        h = PHI["silu"](a[..., :half]) * a[..., half:]
    else:
        h = PHI[cell.activation](a)
    o = cell.skip * y + h @ p["w2"].mT + p.get("b2", 0.0)
    if cell.norm == "layer":
        return torch.nn.functional.layer_norm(o, o.shape[-1:], eps=1e-5)
    if cell.norm == "rms":
        return torch.nn.functional.rms_norm(o, o.shape[-1:], eps=1e-5)
    return o
