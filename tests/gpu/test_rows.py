"""The same bits: alone, in any batch, at any place in it, and in every run."""

import pytest
import torch
from kernels import make_affine, make_gated, make_mlp, one_of_each
from solving import SIZES, SOLVERS, all_same, need_for, on, rows_of, solve, tail

from attractor_kernels.backends import PlanTable, use_plan, use_plan_table
from attractor_kernels.backends.plan import H100, DeviceFacts
from attractor_kernels.backends.plan_table import Kind, PlanEntry

pytestmark = pytest.mark.gpu
CASES = range(len(one_of_each(1)))
PRECISIONS = pytest.mark.parametrize("mixed", [False, True], ids=["full", "mixed"])


@pytest.mark.parametrize("number", CASES)
@PRECISIONS
def test_every_operator(backend, device, number, mixed):
    case, options = one_of_each(150, *SIZES[mixed])[number], tail(SOLVERS["auto"], mixed=mixed)
    need_for(backend, case, device, torch.float32, options)
    tensors = on(case, device)
    whole = solve(backend, case, tensors, options)
    assert all_same(solve(backend, case, tensors, options), whole)
    places = torch.randperm(150)[:97].to(device)
    for rows in (slice(0, 1), slice(149, 150), slice(17, 50), places):
        assert all_same(solve(backend, case, rows_of(case, tensors, rows), options), whole, rows)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dim", [24, 100, 200, 512, 1024, 2048])
@pytest.mark.parametrize("mixed", [False, True], ids=["full", "mixed"])
def test_batches_that_are_cut_up_differently(backend, device, solver, dim, mixed):
    """From one row to many more than the device holds at a time; so every plan for this state is met."""
    batch = 20000 if dim <= 200 else 3000
    case, options = make_affine(batch, dim), tail(SOLVERS[solver], mixed=mixed)
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
    """All but `mixed` and `wgmma` leave the bits as they are."""
    if backend != "cuda":
        pytest.skip("about the plans of the CUDA kernels")
    case, options = make_affine(300, 512), tail(SOLVERS["auto"])
    tensors = on(case, device)
    model = solve(backend, case, tensors, options)
    with use_plan("solve_affine", backend="cuda", **choices):
        assert all_same(solve(backend, case, tensors, options), model)


def table_of(device, backend, choices):
    """For solve_affine of 128 entries by Auto: the choices for a batch of that size."""
    facts = DeviceFacts.of(device) if device.type == "cuda" else H100
    kind = Kind("triton" if backend == "triton" else "cuda", "solve_affine", "float32", "full", "auto", 1, 128)
    return PlanTable(facts, tuple(PlanEntry(kind._replace(batch=batch), one) for batch, one in choices.items()))


MEASURED = {
    "cuda": {1: {"crew": 1}, 32: {"crew": 0, "rows": 32}, 1024: {"blocks": 3, "crew": 0}, 4096: {"rows": 8, "crew": 0}},
    "triton": {1: {"rows": 32}, 32: {"stages": 2}, 1024: {"rows": 16, "warps": 4}, 4096: {"rows": 32, "stages": 4}},
}


def test_a_table_of_plans_leaves_the_bits(backend, device):
    """Each of these batches is launched as another of its entries has it."""
    case, options = make_affine(4096, 128), tail(SOLVERS["auto"])
    tensors = on(case, device)
    whole = solve(backend, case, tensors, options)
    with use_plan_table(table_of(device, backend, MEASURED.get(backend, MEASURED["cuda"]))):
        for size in (1, 30, 1000, 4096):
            rows = slice(4096 - size, 4096)
            assert all_same(solve(backend, case, rows_of(case, tensors, rows), options), whole, rows)


def test_a_table_reaches_the_library(backend, device):
    """One block in flight needs less scratch than all that the device has room for."""
    if backend != "cuda":
        pytest.skip("about the plans of the CUDA kernels")
    case, options = make_affine(4096, 128), tail(SOLVERS["auto"])
    tensors = on(case, device)

    def peak():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        solve(backend, case, tensors, options)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    model = peak()
    with use_plan_table(table_of(device, backend, {4096: {"blocks": 1, "crew": 0}})):
        assert peak() < model - (1 << 20)
        with use_plan("solve_affine", backend="cuda", crew=False):
            assert peak() == model
    assert peak() == model


def test_a_table_that_is_none(backend, device):
    if backend != "cuda":
        pytest.skip("about the plans of the CUDA kernels")
    with pytest.raises(RuntimeError, match=r"rows must be int64 \[entries, 13\] on the CPU"):
        torch.ops.attractor_kernels_plans.table(1, torch.zeros(2, 12, dtype=torch.int64))


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


@PRECISIONS
@pytest.mark.parametrize("make", [make_gated, lambda rows, dim: make_mlp(rows, dim, dim + 3)], ids=["gated", "mlp"])
def test_other_cells_in_batches_that_are_cut_up_differently(backend, device, make, mixed):
    case, options = make(9000, 128 if mixed else 64), tail(SOLVERS["auto"], mixed=mixed)
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


@pytest.mark.parametrize("number", CASES)
def test_five_runs_in_mixed_precision(backend, device, number):
    case, options = one_of_each(2000, *SIZES[True])[number], tail(SOLVERS["auto"], mixed=True)
    need_for(backend, case, device, torch.float32, options)
    tensors = on(case, device)
    first = solve(backend, case, tensors, options)
    assert all(all_same(solve(backend, case, tensors, options), first) for _ in range(5))


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("wgmma", [False, True], ids=["mma", "wgmma"])
def test_either_tile_in_mixed_precision(backend, device, number, wgmma):
    """Small states too, where no model would take products of changes."""
    if backend != "cuda":
        pytest.skip("about the plans of the CUDA kernels")
    case, options = one_of_each(70)[number], tail(SOLVERS["anderson"], mixed=True)
    tensors, found = on(case, device), []
    for rows in (8, 32):
        with use_plan(case.op, backend="cuda", mixed=True, wgmma=wgmma, rows=rows):
            found.append(solve(backend, case, tensors, options))
    assert all_same(*found)
