# Copyright 2026 The attractor_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The fused solves of the cells and of their derivatives, against plain torch loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from kernels import (
    ACTIVATIONS,
    ANDERSON,
    AUTO,
    BATCHED,
    LAYER,
    NONE,
    OPS,
    PICARD,
    REFERENCE,
    RMS,
    Case,
    make_affine,
    make_gated,
    make_gated_linear,
    make_mlp,
    make_mlp_linear,
    one_of_each,
    tail,
)
from torch import Tensor

import attractor_kernels as ak
from attractor_kernels.ops._declare import OPERATORS

# Relative to the largest entry; a few units of rounding for each of the products' additions.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
DIMS = (1, 3, 17, 33, 64, 100)

pytestmark = pytest.mark.skipif(
    not ak.backends.available()["cpu"].usable, reason="the compiled CPU kernels are not built"
)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    error, scale = (actual.double() - expected).abs().max(), expected.abs().max()
    assert error <= TOLERANCE[actual.dtype] * scale, f"relative error {error / scale:.1e}"


def check_map(case: Case, dtype: torch.dtype) -> None:
    """Four evaluations of the map are those of the loop, and what is reported is the residual of the fifth."""
    z, steps, residual, _, _ = case.run(tail(max_steps=5), dtype)
    expected = case.iterate(5)
    assert_near(z, expected)
    following = case.f(expected)
    relative = ((following - expected).norm(dim=-1) / following.norm(dim=-1)).nan_to_num(0.0)  # 0 / 0 is 0
    assert torch.all((residual.double() - relative).abs() <= 1e-3 * relative + TOLERANCE[dtype])
    assert torch.all((steps == 5) | (residual <= 100 * TOLERANCE[dtype]))


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@DTYPES
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "swiglu"])
@pytest.mark.parametrize("dim", DIMS)
def test_affine(activation: str, dim: int, dtype: torch.dtype) -> None:
    check_map(make_affine(7, dim, activation), dtype)
    check_map(make_affine(7, dim, activation, leak=True), dtype)
    if activation == "identity":
        check_map(make_affine(7, dim, activation, scaled=True), dtype)


@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dim", "hidden"), [(1, 5), (3, 7), (17, 16), (33, 100), (64, 128), (100, 200)])
def test_mlp_activations(activation: str, dim: int, hidden: int, dtype: torch.dtype) -> None:
    check_map(make_mlp(7, dim, hidden, activation, skip=0.25), dtype)


@DTYPES
@pytest.mark.parametrize("skip", [0.0, 1.0])
@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("norm", [NONE, LAYER, RMS], ids=["none", "layer", "rms"])
@pytest.mark.parametrize("dim", DIMS)
def test_mlp_norms(dim: int, norm: int, leak: bool, skip: float, dtype: torch.dtype) -> None:
    check_map(make_mlp(5, dim, 2 * dim + 1, "silu", norm, leak, skip, bias=leak), dtype)


@DTYPES
@pytest.mark.parametrize(("skip", "leak"), [(0.0, False), (1.0, True)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("norm", [NONE, LAYER, RMS], ids=["none", "layer", "rms"])
@pytest.mark.parametrize(("dim", "hidden"), [(1, 5), (3, 8), (17, 9), (33, 100), (64, 31), (100, 200)])
@pytest.mark.parametrize("direction", ["adjoint", "tangent"])
def test_mlp_linear(
    direction: str, dim: int, hidden: int, norm: int, gated: bool, skip: float, leak: bool, dtype: torch.dtype
) -> None:
    check_map(make_mlp_linear(direction, 5, dim, hidden, gated, norm, leak, skip), dtype)


@DTYPES
@pytest.mark.parametrize("dim", DIMS)
def test_gated(dim: int, dtype: torch.dtype) -> None:
    check_map(make_gated(7, dim), dtype)
    for direction in ("adjoint", "tangent"):
        check_map(make_gated_linear(direction, 7, dim), dtype)


@pytest.mark.parametrize("solver", [PICARD, ANDERSON, AUTO], ids=["picard", "anderson", "auto"])
def test_as_the_reference(solver: int) -> None:
    """Same answer in every field; the steps of Auto may differ, for its price is the kernel's own."""
    for case in one_of_each(23):
        options = tail(solver, rtol=1e-8, max_steps=300, trace=True)
        ours, reference = case.run(options), case.run(options, ops=REFERENCE)
        assert torch.equal(ours[3], reference[3]), case.op
        error = (ours[0] - reference[0]).norm(dim=-1) / reference[0].norm(dim=-1)
        assert error.max() < (1e-12 if solver == PICARD else 1e-6), case.op
        if solver == AUTO:
            continue
        assert (ours[1] - reference[1]).abs().max() <= (0 if solver == PICARD else 1), case.op
        if solver == PICARD:
            torch.testing.assert_close(ours[2], reference[2], rtol=1e-4, atol=0)
            torch.testing.assert_close(ours[4], reference[4], rtol=1e-3, atol=1e-12, equal_nan=True)


@DTYPES
@pytest.mark.parametrize("solver", [PICARD, ANDERSON, AUTO], ids=["picard", "anderson", "auto"])
def test_solution(solver: int, dtype: torch.dtype) -> None:
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    for case in one_of_each(9):
        z, _, residual, status, _ = case.run(tail(solver, rtol=rtol, max_steps=400), dtype)
        assert torch.all(status == ak.Status.CONVERGED), case.op
        assert residual.max() <= rtol
        true = (case.f(z.double()) - z.double()).norm(dim=-1) / z.double().norm(dim=-1)
        assert true.max() <= 1.2 * rtol + 1e-6 * (dtype == torch.float32), case.op


@pytest.mark.parametrize(("dtype", "mixed"), [(torch.float64, False), (torch.float32, False), (torch.float32, True)])
@pytest.mark.parametrize("solver", [PICARD, ANDERSON, AUTO], ids=["picard", "anderson", "auto"])
def test_a_row_keeps_its_bits(solver: int, dtype: torch.dtype, mixed: bool) -> None:
    """Alone, in any batch, at any place in it, on any number of threads, from run to run."""
    options = tail(solver, rtol=1e-5, max_steps=60, mixed=mixed)
    # Large enough for two threads, and for rows to wait until others end.
    for case in one_of_each(150, 50, 70):
        torch.set_num_threads(2)
        whole = case.run(options, dtype)
        torch.set_num_threads(1)
        for again in (case.run(options, dtype), case.run(options, dtype)):
            assert all(torch.equal(a, b) for a, b in zip(whole[:4], again[:4], strict=True)), case.op
        torch.set_num_threads(2)
        order = torch.randperm(150)
        for rows in (order, order[:31], order[:7], order[:2], order[:1]):
            part = case.run(options, dtype, rows)
            assert all(torch.equal(a[rows], b) for a, b in zip(whole[:4], part[:4], strict=True)), case.op


@DTYPES
@pytest.mark.parametrize("solver", [PICARD, ANDERSON, AUTO], ids=["picard", "anderson", "auto"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_row_is_alone(poison: float, solver: int, dtype: torch.dtype) -> None:
    options = tail(solver, rtol=1e-5, max_steps=60)
    for case in one_of_each(20):
        clean = case.run(options, dtype)
        case.tensors[1][13, -1] = poison  # u or v
        z, steps, residual, status, _ = case.run(options, dtype)
        others = torch.arange(20) != 13
        assert torch.equal(z[others], clean[0][others]), case.op
        assert torch.equal(status[others], clean[3][others])
        if status[13] == ak.Status.NONFINITE:  # an infinite u can saturate tanh and leave the map finite
            assert torch.equal(z[13], case.tensors[0][13].to(dtype)), case.op
            assert steps[13] == 1
        else:
            assert math.isinf(poison)
        assert not residual[others].isnan().any()


def test_best_iterate() -> None:
    for case in one_of_each(11):
        options = tail(PICARD, rtol=0.0, max_steps=9, keep_best=True, trace=True)
        z, steps, residual, _, trace = case.run(options)
        best = trace.nan_to_num(torch.inf).min(0)
        assert torch.equal(residual, best.values), case.op
        assert torch.equal(steps, best.indices.int() + 1), case.op
        for row, step in enumerate(steps.tolist()):
            assert_near(z[row], case.iterate(step)[row])


@pytest.mark.parametrize(("rows", "dim", "hidden"), [(0, 5, 3), (3, 0, 4), (3, 4, 0), (2, 3, 1)])
def test_empty(rows: int, dim: int, hidden: int) -> None:
    for case in (
        make_affine(rows, dim, leak=True),
        make_affine(rows, dim, "identity", scaled=True),
        make_mlp(rows, dim, hidden, leak=True),
        make_mlp(rows, dim, hidden, "swiglu", RMS),
        make_mlp_linear("adjoint", rows, dim, hidden, True, NONE, False, 0.3),
        make_mlp_linear("tangent", rows, dim, hidden, True, NONE, False, 0.3),
        make_gated(rows, dim),
        make_gated_linear("adjoint", rows, dim),
        make_gated_linear("tangent", rows, dim),
    ):
        z, steps, _, _, trace = case.run(tail(AUTO, max_steps=4))
        assert z.shape == (rows, dim) and steps.shape == (rows,) and trace.shape == (0, rows)
        assert_near(case.run(tail(max_steps=4))[0], case.iterate(4))


def test_start_at_zero() -> None:
    """A start of zeros takes a shortcut past the first product."""
    for case in one_of_each(5):
        case.tensors[0][::2] = 0
        check_map(case, torch.float64)


def test_strides() -> None:
    """Weights in any layout, rows that are not contiguous."""
    for case in one_of_each(6):
        expected = case.run(tail())
        strided = [
            t if t is None or t.dim() < 2 else torch.stack([t, torch.full_like(t, torch.nan)], -1).mT.contiguous().mT
            for t in case.tensors
        ]
        views = [t if t is None or t.dim() < 2 else t[..., 0] for t in strided]
        result = getattr(OPS, case.op)(*views, *case.constants, *tail())
        assert torch.equal(result[0], expected[0]), case.op
        transposed = [t if t is None or t.dim() < 2 else t.T.contiguous().T for t in case.tensors]
        assert torch.equal(getattr(OPS, case.op)(*transposed, *case.constants, *tail())[0], expected[0]), case.op


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype: torch.dtype) -> None:
    """Solved in float32, rounded once."""
    for case in one_of_each(6):
        case.tensors = tuple(None if t is None else t.to(dtype) for t in case.tensors)
        z, _, residual, _, _ = case.run(tail(), dtype)
        wide = case.run(tail(), torch.float32)
        assert z.dtype == dtype and torch.equal(z, wide[0].to(dtype)), case.op
        assert torch.equal(residual, wide[2])


@pytest.mark.parametrize("case_index", range(12))
def test_gradients(case_index: int) -> None:
    """First and second derivatives through the kernels; rows' start is not differentiable and left out."""
    case = one_of_each(2, 3, 4)[case_index]
    options = tail(ANDERSON, rtol=1e-13, max_steps=200)
    z0 = case.tensors[0]
    leaves = [t.clone().requires_grad_() for t in case.tensors[1:] if t is not None]

    def solve(*held: Tensor) -> Tensor:
        rest = iter(held)
        tensors = [None if t is None else next(rest) for t in case.tensors[1:]]
        return getattr(OPS, case.op)(z0, *tensors, *case.constants, *options)[0]

    assert torch.autograd.gradcheck(solve, leaves, eps=1e-6, atol=1e-6, rtol=1e-5, nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(solve, leaves, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_every_operator_is_compiled() -> None:
    assert set(BATCHED) == set(OPERATORS)
    for name in BATCHED:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"attractor_kernels::{name}", "CPU"), name
