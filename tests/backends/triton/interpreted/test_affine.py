"""The whole solve of an affine cell, row by row what the reference does."""

import pytest
import torch
from solving import ANDERSON, AUTO, PICARD, Case, affine, agree, contraction, family, normal, tail

from attractor_kernels.backends.reference.activations import CODES, PARTIAL_RELU, SWIGLU
from attractor_kernels.info import Status


@pytest.mark.parametrize("activation", [code for code in CODES.values() if code != SWIGLU])
def test_activations(activation):
    case = affine(7, 13, activation=activation, pieces=5 if activation == PARTIAL_RELU else 0, leak=True)
    agree(case.triton(tail(max_steps=4)), case.reference(tail(max_steps=4)), 1e-6)


@pytest.mark.parametrize("dim", [1, 2, 16, 17, 33, 100, 256])
def test_state_sizes(dim):
    case = affine(3, dim, leak=True, scale=True)
    options = tail(ANDERSON, history=2, max_steps=4)
    agree(case.triton(options), case.reference(options))


@pytest.mark.parametrize("rows", [0, 1, 16, 17])
def test_batch_sizes(rows):
    case = affine(rows, 5)
    got = case.triton(tail(trace=True))
    assert got.z.shape == (rows, 5) and got.trace.shape == (60, rows)
    if rows:
        agree(got, case.reference(tail()))


@pytest.mark.parametrize("name", ["orth", "sym"])
@pytest.mark.parametrize("solver", [PICARD, ANDERSON, AUTO])
def test_both_families(name, solver):
    case = family(name, 4, 24)
    agree(case.triton(tail(solver)), case.reference(tail(solver)))


def test_rows_leave_and_others_take_their_place():
    """70 rows of very different speeds over two programs of 16 lanes."""
    case = affine(70, 6, norm=0.9)
    case.tensors[1][::3] *= 20  # saturated: quick
    options = tail(trace=True, max_steps=40)
    got, want = case.triton(options), case.reference(options)
    assert want.steps.min() <= 8 and want.steps.max() >= 12
    agree(got, want)
    assert (got.trace.isnan().sum(0) == 40 - got.steps).all()
    torch.testing.assert_close(got.trace[:5], want.trace[:5], rtol=1e-3, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("solver", [PICARD, ANDERSON])
def test_diverging_rows_return_their_best_iterate(solver):
    weight = torch.diag(torch.tensor([0.5, 3.0, 0.1], dtype=torch.float64))
    u = normal(4, 3)
    u[::2, 1] = 0  # these converge
    case = Case("solve_affine", (torch.zeros_like(u), u, weight, None, None), (0, 0))
    options = tail(solver, history=1)
    got, want = case.triton(options), case.reference(options)
    if solver == PICARD:
        assert got.status.tolist() == [Status.CONVERGED, Status.DIVERGED] * 2
    agree(got, want)


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("max_steps", [1, 2, 3, 9])
def test_last_and_best(keep_best, max_steps):
    weight = 1.2 * torch.linalg.qr(normal(5, 5))[0]  # residuals that rise and fall
    case = Case("solve_affine", (normal(4, 5), normal(4, 5), weight, None, None), (1, 0))
    options = tail(ANDERSON, history=2, keep_best=keep_best, max_steps=max_steps, damping=0.8)
    agree(case.triton(options), case.reference(options), 1e-4)


def test_min_steps_and_absolute_tolerance():
    case = affine(3, 5, norm=0.3)
    for options in (tail(min_steps=14), tail(rtol=0.0, atol=1e-3)):
        agree(case.triton(options), case.reference(options))
    assert case.triton(tail(min_steps=14)).steps.tolist() == [14] * 3


def test_stagnation():
    """A tolerance that float32 cannot meet ends at its rounding."""
    case = affine(2, 4, norm=0.2)
    options = tail(rtol=0.0, atol=1e-12)
    got = case.triton(options)
    assert (got.status == Status.STAGNATED).logical_or(got.residual == 0).all()
    assert got.residual.max() < 1e-6


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale(scale):
    case = affine(3, 5, activation=0, norm=0.8)
    z0, u, weight, *rest = case.tensors
    scaled = case._replace(tensors=(scale * z0, scale * u, weight, *rest))
    plain = case.triton(tail(ANDERSON, ridge=0.0))
    got = scaled.triton(tail(ANDERSON, ridge=0.0))
    assert (got.steps - plain.steps).abs().max() <= 1
    torch.testing.assert_close(got.z / scale, plain.z, rtol=1e-4, atol=1e-4)


def test_degenerate_maps():
    """A constant map, the identity map, a start that is the fixed point: solved, nothing singular."""
    zero = torch.zeros(3, 3, dtype=torch.float64)
    for weight, u in ((zero, normal(2, 3)), (torch.eye(3, dtype=torch.float64), torch.zeros(2, 3).double())):
        case = Case("solve_affine", (normal(2, 3), u, weight, None, None), (0, 0))
        agree(case.triton(tail(ANDERSON, ridge=0.0)), case.reference(tail(ANDERSON, ridge=0.0)))


def test_weights_in_any_strides():
    case = affine(3, 7)
    z0, u, weight, *rest = case.tensors
    expanded = weight[:, :1].expand(7, 7)
    for w in (weight.mT, expanded, normal(7, 14, scale=0.1)[:, ::2]):
        other = case._replace(tensors=(z0, u, w, *rest))
        agree(other.triton(tail(max_steps=4)), other.reference(tail(max_steps=4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_solved_in_float32(dtype):
    case = Case("solve_affine", (normal(3, 6), normal(3, 6), contraction(6, 6, 0.5), None, None), (1, 0))
    case = case._replace(tensors=tuple(None if t is None else t.to(dtype).double() for t in case.tensors))
    got = case.triton(tail(ANDERSON), dtype=dtype)
    assert got.z.dtype == dtype and got.residual.max() <= 1e-5
    agree(got, case.reference(tail(ANDERSON), torch.float32), torch.finfo(dtype).eps)
