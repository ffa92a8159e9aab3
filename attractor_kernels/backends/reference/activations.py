"""The activations of the cells, by the codes the operators take, and their derivatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

IDENTITY, TANH, RELU, SIGMOID, SOFTPLUS, GELU, PARTIAL_RELU, SILU, RELU2, SWIGLU = range(10)

# Names as the cells and the public operators take them.
CODES = {
    "identity": IDENTITY,
    "tanh": TANH,
    "relu": RELU,
    "sigmoid": SIGMOID,
    "softplus": SOFTPLUS,
    "gelu": GELU,
    "partial_relu": PARTIAL_RELU,
    "silu": SILU,
    "relu2": RELU2,
    "swiglu": SWIGLU,
}


def activate(code: int, a: Tensor, pieces: int = 0) -> Tensor:
    """phi(a), elementwise; swiglu is a product of halves and lives in mlp.py."""
    match code:
        case 0:
            return a
        case 1:
            return torch.tanh(a)
        case 2:
            return torch.relu(a)
        case 3:
            return torch.sigmoid(a)
        case 4:
            return torch.logaddexp(a, torch.zeros_like(a))  # torch's softplus turns linear at 20
        case 5:
            return torch.nn.functional.gelu(a)  # the exact one, with erf
        case 6:
            return torch.where(_kinked(a, pieces), torch.relu(a), a)
        case 7:
            return torch.nn.functional.silu(a)
        case 8:
            return torch.relu(a).square()
    raise ValueError(f"activation must be a code from 0 to 8, got {code}")


def derivative(code: int, a: Tensor, pieces: int = 0) -> Tensor:
    """phi'(a), itself differentiable; at a kink the derivative from the left, as torch has it."""
    match code:
        case 0:
            return torch.ones_like(a)
        case 1:
            return 1 - torch.tanh(a).square()
        case 2:
            return (a > 0).to(a.dtype)
        case 3:
            s = torch.sigmoid(a)
            return s * (1 - s)
        case 4:
            return torch.sigmoid(a)
        case 5:
            cdf = 0.5 * (1 + torch.erf(a * math.sqrt(0.5)))
            return cdf + a * torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
        case 6:
            return ((a > 0) | ~_kinked(a, pieces)).to(a.dtype)
        case 7:
            s = torch.sigmoid(a)
            return s * (1 + a * (1 - s))
        case 8:
            return 2 * torch.relu(a)
    raise ValueError(f"activation must be a code from 0 to 8, got {code}")


def _kinked(a: Tensor, pieces: int) -> Tensor:
    """True for the last `pieces` units."""
    return torch.arange(a.shape[-1], device=a.device) >= a.shape[-1] - pieces
