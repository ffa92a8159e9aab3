"""How an operator would be launched on a GPU, which need not be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from attractor_kernels.backends import override, plan_table, triton
from attractor_kernels.backends import plan as plans
from attractor_kernels.backends.triton import planning

from .contenders import SOLVERS
from .machine import facts_module

OPERATORS = (*override.CUDA_OPERATORS, *override.STEP_OPERATORS)
DEVICES = plans.NAMED_DEVICES
BACKENDS = ("triton", "cuda")
STATE_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Call:
    """A call of an operator, as far as a plan depends on it.

    Attributes:
        batch, dim: of the state; of `anderson_step` and `residual_norm` problems and entries.
        hidden: units of an MLP's hidden layer; 0: as many as the state has.
        history: differences kept; ignored by Picard.
    """

    operator: str
    batch: int
    dim: int
    hidden: int = 0
    solver: str = "auto"
    history: int = 5
    dtype: str = "float32"
    precision: str = "full"

    @property
    def code(self) -> int:
        return SOLVERS[self.solver].code  # type: ignore[attr-defined]

    @property
    def slots(self) -> int:
        return planning.slots_of(self.code, self.history, self.dim)

    @property
    def units(self) -> int:
        return (self.hidden or self.dim) if self.operator.startswith("solve_mlp") else 0

    def kind(self, backend: str) -> plan_table.Kind:
        """As a table of plans calls it; of operators that solve."""
        return plan_table.kind_of(
            backend,
            self.operator,
            dtype=getattr(torch, self.dtype),
            mixed=self.precision == "mixed",
            solver=self.code,
            batch=self.batch,
            dim=self.dim,
            hidden=self.units,
        )


def gpu_plan(call: Call, device: plans.DeviceFacts, backend: str) -> dict[str, Any]:
    """The plan as plain values; "chosen_by": of what `use_plan` knows, whether "hand", "table" or "model" chose it.

    Raises ValueError where the backend has no kernel for the call, or its plans are not built.
    """
    plan = _triton(call, device) if backend == "triton" else _cuda(call, device)
    table_serves = plan.pop("measured", True)  # the library leaves out an entry that cannot be had
    return {**plan, "chosen_by": _chosen_by(call, device, backend, table_serves)}


def _chosen_by(call: Call, device: plans.DeviceFacts, backend: str, table_serves: bool) -> dict[str, str]:
    choices: Mapping[str, int]
    if call.operator in override.STEP_OPERATORS:  # of which no table has anything
        choices, who = override.told(call.operator, backend), "hand"
    else:
        choices, who = plan_table.choices_for(device.name, call.kind(backend))
    if who == "table" and not table_serves:
        choices = {}
    return {name: who if name in choices else "model" for name in override.choosable(call.operator, backend)}


def _triton(call: Call, device: plans.DeviceFacts) -> dict[str, Any]:
    dtype = getattr(torch, call.dtype)
    history = call.history if call.code else 0
    obstacle = triton.uncovered(call.operator, dtype, triton.Sizes(call.dim, call.units, history))
    if obstacle is not None:
        raise ValueError(f"backend 'triton' has no plan for {call.operator}: {obstacle}")
    if call.operator == "anderson_step":
        step = plans.plan_step(
            problems=call.batch, groups=1, entries=call.dim, slots=call.slots, item_bytes=dtype.itemsize
        )
        return asdict(step)
    solve = planning.plan_call(
        call.operator,
        device,
        batch=call.batch,
        dim=call.dim,
        hidden=call.units,
        products=planning.multiply_adds(call.operator, call.dim, call.units),
        solver=call.code,
        history=call.history,
        dtype=dtype,
        mixed=call.precision == "mixed",
    )
    return {**asdict(solve), "floor_cycles": solve.floor_cycles}


def _cuda(call: Call, device: plans.DeviceFacts) -> dict[str, Any]:
    facts = facts_module()
    if facts is None:
        raise ValueError("backend 'cuda' has no plan here: the compiled part of the package is missing")
    where = (device.multiprocessors, device.shared_bytes)
    item = getattr(torch, call.dtype).itemsize
    vectors = 2 * (call.slots - 1) + 5 if call.slots else 3
    choices = override.told(call.operator, "cuda")
    if call.operator == "residual_norm":
        told = override.cuda_step_choices(choices)[:2]
        return {
            "kernel": "residual_kernel",
            "device": device.name,
            **facts.cuda_plan_residual(call.batch, call.dim, call.dtype, *told),
            "floor_bytes": 2 * call.batch * call.dim * item,
        }
    if call.operator == "anderson_step":
        stride = call.dim + 80 if call.dim >= 512 else call.dim  # step_buffers
        sizes = (call.batch, 1, call.dim, call.slots, stride, call.dtype)
        step = facts.cuda_plan_step(*sizes, *where, *override.cuda_step_choices(choices))
        return {
            "kernel": "step_kernel",
            "device": device.name,
            **step,
            "history": "global" if call.slots else "none",
            "floor_bytes": call.batch * call.dim * item * vectors,
        }
    wide = max(item, 4)  # the halves are solved in float32
    major, minor = device.capability
    table = plan_table.in_use()
    solve = facts.cuda_plan_solve(
        call.operator,
        call.batch,
        call.dim,
        call.units,
        call.code,
        call.history,
        call.precision == "mixed",
        wide,
        *where,
        10 * major + minor,
        *override.cuda_choices(choices),
        table=table.library_rows(device.name) if table is not None else (),
    )
    products = planning.multiply_adds(call.operator, call.dim, call.units)
    # Of a step whose product is of changes, where there are such.
    rate = device.bfloat16_products if solve["mixed"] else device.float32_products * 4 / wide
    weight_bytes = products * (2 if solve["mixed"] else wide)
    # A crew reads its weights once, and shares the products.
    resident = "members" in solve or solve["products"] == "wgmma"
    return {
        "device": device.name,
        **solve,
        "product_cycles": round(solve["tile_rows"] * products / rate / solve.get("members", 1)),
        "weight_cycles": 0 if resident else round(weight_bytes / plans.L2_BYTES_A_CYCLE),
    }
