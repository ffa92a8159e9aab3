"""From an operator's arguments to one launch of the loop, and the operators' CUDA implementations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...ops._declare import OPERATORS
from ..plan import DeviceFacts, SolvePlan
from . import Sizes
from .affine import Affine, affine_map
from .gated import Gated, GatedLinear, gated_adjoint_map, gated_map, gated_tangent_map
from .loop import Method, Result, Tile, solve
from .mlp import Mlp, MlpLinear, mlp_adjoint_map, mlp_map, mlp_tangent_map
from .planning import control_columns, plan_call, scratch_vectors
from .stopping import Numbers

_EPS = torch.finfo(torch.float32).eps  # whatever the dtype of z0, the solve is in float32


class Problem(NamedTuple):
    """A cell as the loop takes it."""

    evaluate: Any  # the map
    operands: Any
    hidden: int
    products: int  # multiply-adds of the map for one row


class Launch(NamedTuple):
    """A kernel and everything it is called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def run(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.keywords)


def _constant(value: Any) -> Any:
    return tl.constexpr(value)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _strided(weight: Tensor) -> tuple[Tensor, int, int]:
    """A weight as the maps take it: with the strides of its outputs and its inputs."""
    return weight, weight.stride(0), weight.stride(1)


def _with_narrow(operands: Any) -> Any:
    """Of a cell, with what its changes are multiplied by: one more pass over its weight, before the launch."""
    return operands._replace(narrow=operands.weight.to(torch.bfloat16).contiguous())


def _affine(tensors: Sequence[Any], activation: int, pieces: int) -> Problem:
    u, weight, leak, scale = tensors
    operands = Affine(
        u.contiguous(),
        *_strided(weight),
        _contiguous(leak),
        _contiguous(scale),
        float(pieces),
        _constant(activation),
    )
    return Problem(affine_map, operands, 0, weight.numel())


def _mlp(tensors: Sequence[Any], skip: float, norm: int, norm_eps: float, activation: int) -> Problem:
    u, w1, b1, w2, b2, leak = tensors
    operands = Mlp(
        u.contiguous(),
        *_strided(w1),
        _contiguous(b1),
        *_strided(w2),
        _contiguous(b2),
        _contiguous(leak),
        w2.shape[1],
        float(skip),
        float(norm_eps),
        _constant(norm),
        _constant(activation),
    )
    return Problem(mlp_map, operands, w2.shape[1], w1.numel() + w2.numel())


def _mlp_linear(evaluate: Any) -> Callable[..., Problem]:
    def problem(tensors: Sequence[Any], skip: float, norm: int) -> Problem:
        v, q, n, rinv, w1, w2, leak = tensors
        operands = MlpLinear(
            v.contiguous(),
            q.contiguous(),
            n.contiguous(),
            rinv.contiguous(),
            *_strided(w1),
            *_strided(w2),
            _contiguous(leak),
            w2.shape[1],
            float(skip),
            _constant(norm),
            _constant(q.shape[1] != w2.shape[1]),
        )
        return Problem(evaluate, operands, w2.shape[1], w1.numel() + w2.numel())

    return problem


def _gated(tensors: Sequence[Any]) -> Problem:
    u, weight = tensors
    return Problem(gated_map, Gated(u.contiguous(), *_strided(weight)), 0, weight.numel())


def _gated_linear(evaluate: Any) -> Callable[..., Problem]:
    def problem(tensors: Sequence[Any]) -> Problem:
        v, q, c, weight = tensors
        operands = GatedLinear(v.contiguous(), q.contiguous(), c.contiguous(), *_strided(weight))
        return Problem(evaluate, operands, 0, weight.numel())

    return problem


# From the held tensors and the constants of each operator.
PROBLEMS: dict[str, Callable[..., Problem]] = {
    "solve_affine": _affine,
    "solve_mlp": _mlp,
    "solve_mlp_adjoint": _mlp_linear(mlp_adjoint_map),
    "solve_mlp_tangent": _mlp_linear(mlp_tangent_map),
    "solve_gated": _gated,
    "solve_gated_adjoint": _gated_linear(gated_adjoint_map),
    "solve_gated_tangent": _gated_linear(gated_tangent_map),
}


def sizes_of(name: str, arguments: Sequence[Any]) -> Sizes:
    """What `uncovered` asks of an operator's call."""
    (z0, *held), _, tail = OPERATORS[name].split(arguments)
    hidden = next((w.shape[1] for w in _second_weights(name, held)), 0)
    return Sizes(z0.shape[1], hidden, tail.history if tail.solver else 0)


def _second_weights(name: str, held: Sequence[Any]) -> Sequence[Tensor]:
    if not name.startswith("solve_mlp"):
        return ()
    return (held[3],) if name == "solve_mlp" else (held[5],)


def prepare(
    name: str, arguments: Sequence[Any], facts: DeviceFacts, rows: int | None = None
) -> tuple[Launch, Result, SolvePlan]:
    """The launch of an operator's call, its results and its plan; rows: of a tile, where the plan's are not wanted."""
    (z0, *held), constants, tail = OPERATORS[name].split(arguments)
    problem = PROBLEMS[name](held, *constants)
    batch, dim = z0.shape
    plan = plan_call(
        name,
        facts,
        batch=batch,
        dim=dim,
        hidden=problem.hidden,
        products=problem.products,
        solver=tail.solver,
        history=tail.history,
        dtype=z0.dtype,
        mixed=tail.mixed,
        keep_best=tail.keep_best,
        rows=rows,
    )
    slots, kept = plan.slots, plan.kept
    operands = _with_narrow(problem.operands) if kept else problem.operands
    result = Result(
        torch.empty_like(z0, memory_format=torch.contiguous_format),
        z0.new_empty(batch, dtype=torch.int32),
        z0.new_empty(batch, dtype=torch.float32),
        z0.new_empty(batch, dtype=torch.uint8),
        z0.new_full((tail.max_steps, batch), torch.nan, dtype=torch.float32) if tail.trace else None,
    )
    lanes = plan.programs * plan.rows
    columns = control_columns(slots, kept)
    launch = Launch(
        solve,
        (plan.programs,),
        (
            problem.evaluate,
            operands,
            z0.contiguous(),
            result,
            z0.new_empty((lanes, scratch_vectors(slots, kept), plan.columns), dtype=torch.float32),
            z0.new_empty((lanes, columns), dtype=torch.float64),
            Numbers(
                float(tail.damping),
                float(tail.ridge),
                float(tail.rtol),
                float(tail.atol),
                float(tail.max_steps),
                float(tail.min_steps),
            ),
            batch,
            dim,
            Method(_constant(slots), _constant(tail.solver == 2), _constant(tail.keep_best)),
            Tile(*map(_constant, (plan.rows, plan.columns, plan.inputs, plan.hidden, plan.dots, kept))),
        ),
        dict(COLUMNS=columns, EPS=_EPS, num_warps=plan.warps, num_stages=plan.stages, maxnreg=plan.registers),
    )
    return launch, result, plan


def solve_rows(
    name: str, arguments: Sequence[Any], facts: DeviceFacts, rows: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """An operator's results by its Triton kernel, which covers the call."""
    z0 = arguments[0]
    launch, result, _ = prepare(name, arguments, facts, rows)
    if z0.shape[0]:
        with torch.cuda.device(z0.device) if z0.is_cuda else contextlib.nullcontext():
            launch.run()
    z, steps, residual, status, trace = result
    return z, steps, residual, status, z0.new_empty((0, z0.shape[0]), dtype=torch.float32) if trace is None else trace


@cache
def facts_of(device: torch.device) -> DeviceFacts:
    return DeviceFacts.of(device)
