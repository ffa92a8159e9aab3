"""torch.library.opcheck of every operator there is: schema, autograd registration, fakes, and traced dispatch.

Both namespaces: in `attractor_kernels` a CPU tensor meets the compiled kernels where they are built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operators import NAMESPACES, PROBLEMS, operator, problem

import attractor_kernels as ak
from attractor_kernels.ops import step_buffers

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# What the adjoint reaches in this dtype (half states are solved in float32), and how close two runs of it come.
RTOL = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}
SAME = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
PICARD, ANDERSON, AUTO = (0, 1, 1.0, 0.0), (1, 3, 0.9, 1e-8), (2, 5, 1.0, 1e-8)


def in_dtype(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The same leaves, rounded."""
    return tuple(
        a.detach().to(dtype).requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) else a for a in arguments
    )


def solving(name: str, solver: tuple[Any, ...]) -> Callable[[torch.dtype], tuple[Any, ...]]:
    return lambda dtype: (*in_dtype(problem(name), dtype), *solver, RTOL[dtype], 0.0, 300, 0, False, False, False)


def gradient_of(name: str) -> Callable[[torch.dtype], tuple[Any, ...]]:
    """`..._gradient` takes a solved z in the place of the start."""

    def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
        given = solving(name, ANDERSON)(dtype)
        return (torch.randn(given[0].shape).to(dtype), *given[1:])

    return arguments


def traced(dtype: torch.dtype) -> tuple[Any, ...]:
    """With trace and keep_best; no row ends early, for the NaN after that is unequal to itself."""
    held = in_dtype(tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in problem("solve_affine")), dtype)
    return (*held, *AUTO, 0.0, 0.0, 3, 0, True, True, False)


def step(solver: ak.Picard | ak.Anderson | ak.Auto) -> Callable[[torch.dtype], tuple[Any, ...]]:
    """The fourth step of a solve, all of its buffers written."""

    def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
        rate, shift = torch.rand(3, 6).to(dtype) * 0.9, torch.randn(3, 6).to(dtype)
        z = torch.zeros(3, 6, dtype=dtype)
        buffers = step_buffers(z, 3, 1, solver, max_steps=9, trace=True)
        for buffer in (buffers.out, buffers.best, buffers.history, buffers.trace):
            buffer.zero_()
        tail = (solver.code, solver.damping, getattr(solver, "ridge", 0.0), 0.0, 0.0, 9, 0, False)
        for _ in range(3):
            torch.ops.attractor_kernels.anderson_step(z, rate * z + shift, *buffers, *tail)
            z, buffers = buffers.out, buffers._replace(out=z)
        return (z, rate * z + shift, *buffers, *tail)

    return arguments


def norm(dtype: torch.dtype) -> tuple[Any, ...]:
    z, fz = (torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    return (*in_dtype((z, fz), dtype), 1)


def slope(dtype: torch.dtype) -> tuple[Any, ...]:
    a, v, scale = (torch.randn(3, 7, dtype=torch.float64).to(dtype) for _ in range(3))
    return (a, v, scale, 5, 0)


CASES: dict[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    "affine_slope": slope,
    "residual_norm": norm,
    "solve_affine traced": traced,
}
for _name in PROBLEMS:
    _op, *_form = _name.split()
    CASES[_name] = solving(_name, ANDERSON)
    CASES[" ".join([f"{_op}_gradient", *_form])] = gradient_of(_name)
for _word, _solver in (("picard", PICARD), ("auto", AUTO)):
    CASES[f"solve_affine {_word}"] = solving("solve_affine", _solver)
for _word, _options in (("", ak.Anderson(2)), (" picard", ak.Picard(0.9)), (" auto", ak.Auto(2))):
    CASES[f"anderson_step{_word}"] = step(_options)

# An operator in every dtype; of its other forms and of what is a composition of operators, two.
GRID = [
    (case, dtype)
    for case in CASES
    for dtype in (DTYPES if " " not in case and not case.endswith("_gradient") else [torch.float64, torch.bfloat16])
]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_operator_has_a_case(namespace):
    registered = {
        name.removeprefix(f"{namespace}::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(f"{namespace}::")
    }
    assert registered == {name.split()[0] for name in CASES}


@pytest.mark.parametrize(("case", "dtype"), GRID, ids=lambda value: str(value).removeprefix("torch."))
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_opcheck(namespace, case, dtype):
    done = torch.library.opcheck(
        operator(namespace, case), CASES[case](dtype), rtol=SAME[dtype], atol=SAME[dtype], raise_exception=True
    )
    assert len(done) == 4 and set(done.values()) == {"SUCCESS"}
