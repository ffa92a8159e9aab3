"""Plans chosen by hand."""

from types import SimpleNamespace

import pytest
import torch

from attractor_kernels.backends import cuda, use_plan
from attractor_kernels.backends.override import all_told, told
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
        ("affine_slope", {}, ValueError, "'residual_norm' or an operator that solves, got 'affine_slope'"),
        ("residual_norm", {"warps": 2}, TypeError, "takes nothing, got 'warps'"),
        ("residual_norm", {"backend": "cuda", "split": 1}, TypeError, "takes warp, blocks, got 'split'"),
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
        ("anderson_step", {"backend": "cuda", "rows": 8}, TypeError, "takes warp, blocks, split, kept, solvers, got"),
        ("anderson_step", {"backend": "cuda", "kept": -1}, ValueError, r"use_plan\(kept=...\) must be between 0 and"),
        ("anderson_step", {"backend": "cuda", "solvers": 129}, ValueError, "must be between 1 and 128, got 129"),
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


def test_what_was_told_can_be_compared():
    nothing = all_told()
    with use_plan("anderson_step", backend="cuda", split=True, blocks=9):
        one = all_told()
        with use_plan("anderson_step", backend="cuda", blocks=9, split=True):
            assert all_told() == one
        with use_plan("anderson_step", backend="cuda", split=True):
            assert all_told() not in (one, nothing)
    assert all_told() == nothing != one


def test_the_library_gets_what_is_told(monkeypatch):
    """Numbers by place, as csrc/ops/cuda_choices.cpp takes them."""
    calls: list = []
    library = SimpleNamespace(
        choose_solve=lambda *numbers: calls.append(("solve", *numbers)),
        choose_step=lambda *numbers: calls.append(("step", *numbers)),
    )
    monkeypatch.setattr(cuda, "library_obstacle", lambda: None)
    monkeypatch.setattr(torch.ops, "attractor_kernels_plans", library, raising=False)
    with (
        use_plan("solve_mlp", backend="cuda", rows=32, blocks=5, mixed=True, crew=False, wgmma=False),
        use_plan("anderson_step", backend="cuda", warp=False, blocks=7, split=True, kept=3, solvers=2),
        use_plan("residual_norm", backend="cuda", blocks=4),
        use_plan("anderson_step", warps=2),
    ):
        pass
    told_first, told_last = calls[:3], calls[3:]
    assert told_first == [("solve", 1, 32, 5, 1, 0, 0), ("step", 0, 0, 7, 1, 3, 2), ("step", 1, -1, 4, -1, -1, 0)]
    assert told_last == [("step", 1, -1, 0, -1, -1, 0), ("step", 0, -1, 0, -1, -1, 0), ("solve", 1, 0, 0, -1, -1, -1)]
