"""Plans chosen by hand."""

import pytest
import torch

from attractor_kernels.backends import use_plan
from attractor_kernels.backends.override import told
from attractor_kernels.backends.plan import H100
from attractor_kernels.backends.plan import plan_step as step_plan
from attractor_kernels.backends.triton.planning import plan_call


def solve_plan(batch: int = 4096, rows: int | None = None):
    how = dict(solver=1, history=5, dtype=torch.float32, mixed=False)
    sizes = dict(batch=batch, dim=64, hidden=0, products=64 * 64)
    return plan_call("solve_affine", H100, **sizes, **how, rows=rows)


def test_all_that_follows_is_counted_anew():
    model = solve_plan()
    with use_plan("solve_affine", rows=32, warps=8, stages=2, registers=128, programs=50):
        told = solve_plan()
        assert (told.rows, told.warps, told.stages, told.registers, told.programs) == (32, 8, 2, 128, 50)
        assert told.scratch_bytes == model.scratch_bytes // (model.programs * model.rows) * 50 * 32
        assert told.shared_bytes < solve_plan(rows=64).shared_bytes
        assert told.product_cycles == model.product_cycles * 32 // model.rows
        assert solve_plan(batch=40).programs == 2  # no more than there are tiles
        assert solve_plan(rows=16).rows == 16  # what a call itself asks for goes first
    assert solve_plan() == model


def test_choices_nest_and_end():
    model = solve_plan()
    with use_plan("solve_affine", warps=8):
        with use_plan("solve_affine", stages=4):
            inner = solve_plan()
            assert (inner.warps, inner.stages) == (model.warps, 4)
        assert solve_plan().warps == 8
        with use_plan("solve_affine"):
            assert solve_plan() == model
    assert solve_plan() == model
    use_plan("solve_affine", stages=2)
    try:
        assert solve_plan().stages == 2
    finally:
        use_plan("solve_affine")
    assert solve_plan() == model


def test_other_operators_keep_theirs():
    sizes = dict(problems=3, groups=1, entries=100, slots=6, item_bytes=4)
    model = step_plan(**sizes)
    with use_plan("solve_affine", warps=1):
        assert step_plan(**sizes) == model
    with use_plan("anderson_step", warps=2, registers=64):
        told = step_plan(**sizes)
        assert (told.warps, told.registers) == (2, 64)
        assert "warps  2" in str(told)


@pytest.mark.parametrize(
    ("operator", "choices", "error", "message"),
    [
        ("residual_norm", {}, ValueError, "must be 'anderson_step' or an operator that solves, got 'residual_norm'"),
        ("solve_affine", {"tile": 3}, TypeError, "takes rows, warps, stages, registers, programs, mixed, got 'tile'"),
        ("anderson_step", {"rows": 16}, TypeError, "takes warps, registers, got 'rows'"),
        ("solve_affine", {"rows": 8}, ValueError, r"use_plan\(rows=...\) must be between 16 and 64, got 8"),
        ("solve_affine", {"rows": 48}, ValueError, "must be a power of two, got 48"),
        ("solve_affine", {"warps": 2.0}, TypeError, r"use_plan\(warps=...\) must be an int"),
        ("solve_block", {}, ValueError, "an operator that solves, got 'solve_block'"),
        ("solve_affine", {"backend": "cpu"}, ValueError, r"use_plan\(backend\)"),
        (
            "solve_affine",
            {"backend": "cuda", "warps": 2},
            TypeError,
            "mixed, crew, wgmma, got 'warps'",
        ),
        ("solve_affine", {"backend": "cuda", "rows": 24}, ValueError, "must be a power of two, got 24"),
        ("solve_affine", {"backend": "cuda", "crew": 2}, ValueError, r"use_plan\(crew=...\) must be between 0 and 1"),
        ("anderson_step", {"backend": "cuda", "rows": 8}, TypeError, "takes nothing, got 'rows'"),
    ],
)
def test_wrong_choices(operator, choices, error, message):
    model = solve_plan()
    with pytest.raises(error, match=message):
        use_plan(operator, **choices)
    assert solve_plan() == model


def test_backends_keep_their_own():
    with use_plan("solve_affine", backend="cuda", rows=8, crew=False), use_plan("solve_affine", warps=2):
        assert told("solve_affine", "cuda") == {"rows": 8, "crew": 0}
        assert told("solve_affine", "triton") == {"warps": 2}
        assert told("solve_mlp", "cuda") == {}
    assert told("solve_affine", "cuda") == told("solve_affine", "triton") == {}
