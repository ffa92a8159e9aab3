"""The solving operators in plain torch: the generic loop on each cell's map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...ops._declare import OPERATORS, Operator
from . import affine, gated, mlp
from .loop import solve

# f(z, *held tensors, *constants) of each operator
MAPS: dict[str, Callable[..., Tensor]] = {
    "solve_affine": affine.forward,
    "solve_mlp": mlp.forward,
    "solve_mlp_adjoint": lambda w, v, *held: mlp.adjoint(w, *held) + v,
    "solve_mlp_tangent": lambda y, v, *held: mlp.tangent(y, *held) + v,
    "solve_gated": gated.forward,
    "solve_gated_adjoint": lambda w, v, *held: gated.adjoint(w, *held) + v,
    "solve_gated_tangent": lambda y, v, *held: gated.tangent(y, *held) + v,
}


def make_kernel(operator: Operator, f: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    def kernel(*arguments: Any) -> tuple[Tensor, ...]:
        (z0, *held), constants, tail = operator.split(arguments)
        dtype = z0.dtype
        if dtype in (torch.float16, torch.bfloat16):  # as in the compiled kernels: solved in float32, then rounded
            z0, held = z0.float(), [None if t is None else t.float() for t in held]
        solved = solve(
            lambda z: f(z.squeeze(1), *held, *constants).unsqueeze(1),
            z0.unsqueeze(1),  # rows are problems of one mixing group
            tail.options(),
            rtol=tail.rtol,
            atol=tail.atol,
            max_steps=tail.max_steps,
            min_steps=tail.min_steps,
            keep_best=tail.keep_best,
            trace=tail.trace,
        )
        trace = z0.new_empty((0, z0.shape[0]), dtype=torch.float32) if solved.trace is None else solved.trace
        return solved.z.squeeze(1).to(dtype), solved.steps, solved.residual, solved.status, trace

    return kernel


for _name, _f in MAPS.items():
    OPERATORS[_name].implement(make_kernel(OPERATORS[_name], _f))
