"""The same bits: alone, in any batch, at any place in it, and in every run."""

import pytest
import torch
from kernels import make_affine, make_gated, make_mlp, one_of_each
from solving import SOLVERS, all_same, need_for, on, rows_of, solve, tail

from attractor_kernels.backends import use_plan

pytestmark = pytest.mark.gpu
CASES = range(len(one_of_each(1)))


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("mixed", [False, True], ids=["full", "mixed"])
def test_every_operator(backend, device, number, mixed):
    case, options = one_of_each(150)[number], tail(SOLVERS["auto"], mixed=mixed)
    need_for(backend, case, device, torch.float32, options)
    tensors = on(case, device)
    whole = solve(backend, case, tensors, options)
    assert all_same(solve(backend, case, tensors, options), whole)
    places = torch.randperm(150)[:97].to(device)
    for rows in (slice(0, 1), slice(149, 150), slice(17, 50), places):
        assert all_same(solve(backend, case, rows_of(case, tensors, rows), options), whole, rows)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dim", [24, 100, 200, 512, 1024, 2048])
def test_batches_that_are_cut_up_differently(backend, device, solver, dim):
    """From one row to many more than the device holds at a time; so every plan for this state is met."""
    batch = 20000 if dim <= 200 else 3000
    case, options = make_affine(batch, dim), tail(SOLVERS[solver])
    need_for(backend, case, device, torch.float32, options)
    tensors = on(case, device)
    whole = solve(backend, case, tensors, options)
    for size in (1, 7, 40, 600, 2500):
        rows = slice(batch - size, batch)
        assert all_same(solve(backend, case, rows_of(case, tensors, rows), options), whole, rows)


@pytest.mark.parametrize(
    "choices", [{"rows": 8}, {"rows": 32}, {"blocks": 3}, {"crew": True}, {"crew": False}], ids=str
)
def test_plans_chosen_by_hand(backend, device, choices):
    """All but `mixed` leave the bits as they are."""
    if backend != "cuda":
        pytest.skip("about the plans of the CUDA kernels")
    case, options = make_affine(300, 512), tail(SOLVERS["auto"])
    tensors = on(case, device)
    model = solve(backend, case, tensors, options)
    with use_plan("solve_affine", backend="cuda", **choices):
        assert all_same(solve(backend, case, tensors, options), model)


def test_a_tile_that_there_is_not(backend, device):
    if backend != "cuda":
        pytest.skip("about the plans of the CUDA kernels")
    case = make_affine(3, 64)
    with use_plan("solve_affine", backend="cuda", rows=16), pytest.raises(RuntimeError, match="8 or 32 rows"):
        solve(backend, case, on(case, device), tail(SOLVERS["picard"]))


@pytest.mark.parametrize("dim", [24, 64, 128, 256])
@pytest.mark.parametrize("solver", SOLVERS)
def test_products_of_changes(backend, device, solver, dim):
    """Where rows wait for others: in every batch, and from run to run."""
    if backend == "cpu":
        pytest.skip("about plans of GPU kernels")
    case, options = make_affine(9000, dim), tail(SOLVERS[solver], mixed=True)
    need_for(backend, case, device, torch.float32, options)
    tensors = on(case, device)
    with use_plan("solve_affine", backend=backend, mixed=True):
        whole = solve(backend, case, tensors, options)
        for size in (9000, 1, 7, 40, 600, 2500):
            rows = slice(9000 - size, 9000)
            assert all_same(solve(backend, case, rows_of(case, tensors, rows), options), whole, rows)


@pytest.mark.parametrize("make", [make_gated, lambda rows, dim: make_mlp(rows, dim, dim + 3)], ids=["gated", "mlp"])
def test_other_cells_in_batches_that_are_cut_up_differently(backend, device, make):
    case, options = make(9000, 64), tail(SOLVERS["auto"])
    need_for(backend, case, device, torch.float32, options)
    tensors = on(case, device)
    whole = solve(backend, case, tensors, options)
    for size in (1, 40, 2500):
        rows = slice(9000 - size, 9000)
        assert all_same(solve(backend, case, rows_of(case, tensors, rows), options), whole, rows)


@pytest.mark.parametrize("solver", SOLVERS)
def test_twenty_runs(backend, device, solver):
    """A race shows as a run that differs."""
    case, options = make_affine(5000, 96), tail(SOLVERS[solver])
    need_for(backend, case, device, torch.float32, options)
    tensors = on(case, device)
    first = solve(backend, case, tensors, options)
    assert all(all_same(solve(backend, case, tensors, options), first) for _ in range(20))
