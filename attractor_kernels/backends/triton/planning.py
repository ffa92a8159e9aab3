"""What a call of an operator asks of its plan. Triton is not imported: a plan can be had where it is not installed."""

from __future__ import annotations

import torch

from ..plan import DeviceFacts, SolvePlan, changes_pay, plan_solve, product_precision
from ..plan_table import choices_for, kind_of

PRECISION_COLUMNS = 9  # of a row with products of changes, float64
# Vectors that a row keeps for products of changes, where a kernel has such: the z that they stand for, the products.
KEPT = {"solve_affine": 2, "solve_gated": 3}
CONTROL_COLUMNS = 19  # of a problem, float64: what precedes the groups' columns
FIRST_RING = 3  # vectors of a lane before its rings: the state, a factor, the best iterate


def group_columns(slots: int) -> int:
    """Float64 columns a group keeps: valid differences, weights by age and how many are used, the Gram matrix."""
    return 1 + slots + slots * slots


def sum_columns(slots: int) -> int:
    """Inner products of a step."""
    return 2 * max(slots, 1)


def control_columns(slots: int, kept: int = 0) -> int:
    """Float64 scratch of a lane: a problem's columns, those of its one group, its sums."""
    return CONTROL_COLUMNS + group_columns(slots) + sum_columns(slots) + (PRECISION_COLUMNS if kept else 0)


def scratch_vectors(slots: int, kept: int = 0) -> int:
    """Float32 scratch vectors of a lane."""
    return FIRST_RING + 2 * slots + kept


def slots_of(solver: int, history: int, entries: int) -> int:
    """Slots of a ring: one more than the differences kept; 0: Picard."""
    return max(1, min(history, entries)) + 1 if solver else 0


def multiply_adds(name: str, dim: int, hidden: int = 0) -> int:
    """Of one evaluation of a cell's map, for one row. hidden: units, of a hidden layer that is not gated."""
    cell = name.removesuffix("_adjoint").removesuffix("_tangent")
    return {"solve_affine": dim * dim, "solve_gated": 2 * dim * dim, "solve_mlp": 2 * dim * hidden}[cell]


def plan_call(
    name: str,
    device: DeviceFacts,
    *,
    batch: int,
    dim: int,
    hidden: int,
    products: int,
    solver: int,
    history: int,
    dtype: torch.dtype,
    mixed: bool,
    keep_best: bool = False,
    rows: int | None = None,
) -> SolvePlan:
    """The plan of a solving operator's call; solver: its code. Other arguments as in `plan_solve`.

    What `use_plan` says goes before the table in use, and that before the model.
    """
    kind = kind_of("triton", name, dtype=dtype, mixed=mixed, solver=solver, batch=batch, dim=dim, hidden=hidden)
    slots = slots_of(solver, history, dim)
    # "best" compares residuals of different steps, which with products of changes are not of one kind.
    permitted = mixed and not keep_best and dtype == torch.float32 and name in KEPT
    kept = KEPT[name] if permitted and changes_pay(name, device, dim, products, KEPT[name]) else 0
    return plan_solve(
        name,
        device,
        batch=batch,
        dim=dim,
        hidden=hidden,
        products=products,
        slots=slots,
        vectors=scratch_vectors(slots, kept),
        control=control_columns(slots, kept),
        kept=kept,
        precision=product_precision(dtype, mixed),
        rows=rows,
        choices=choices_for(device.name, kind)[0],
    )
