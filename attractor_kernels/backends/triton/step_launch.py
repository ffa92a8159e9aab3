"""From the operator `anderson_step` to its one launch, or two."""

from __future__ import annotations

import contextlib

import torch
import triton.language as tl
from torch import Tensor

from ..plan import StepPlan, plan_step
from .launch import Launch
from .planning import CONTROL_COLUMNS, group_columns
from .step import Buffers, Shape, StepMethod, step_combine, step_measure, step_whole
from .stopping import Numbers


def prepare_step(
    z: Tensor,  # [problems, groups, entries] in any shape
    fz: Tensor,
    out: Tensor,
    best: Tensor,
    history: Tensor,  # [problems, groups, 2, slots, stride]
    control: Tensor,  # float64 [problems, columns]
    active: Tensor,  # int64 [1]
    trace: Tensor | None,  # float32 [max_steps, problems]
    solver: int,
    damping: float,
    ridge: float,
    rtol: float,
    atol: float,
    max_steps: int,
    min_steps: int,
    keep_best: bool,
) -> tuple[list[Launch], StepPlan]:
    """The launches of a step, in order, and their plan."""
    problems, groups, _, slots, stride = history.shape
    entries = z.numel() // (problems * groups)
    plan = plan_step(problems=problems, groups=groups, entries=entries, slots=slots, item_bytes=z.element_size())
    partial = None
    if plan.tiles > 1:
        partial = control.new_empty((problems * groups, plan.tiles, 2 * max(slots, 1)))
    buffers = Buffers(z, fz, out, best, history, control, active, trace, partial)
    sums = (control.shape[1] - CONTROL_COLUMNS) // groups - group_columns(slots)
    shape = Shape(problems, groups, entries, stride, control.shape[1], sums, plan.tiles)
    numbers = Numbers(float(damping), float(ridge), float(rtol), float(atol), float(max_steps), float(min_steps))
    method = StepMethod(
        *(
            tl.constexpr(value)
            for value in (
                slots,
                solver == 2,
                keep_best,
                groups == 1,
                plan.tiles == 1,
                plan.groups,
                plan.columns,
                plan.batch,
            )
        )
    )
    keywords = dict(EPS=torch.finfo(z.dtype).eps, num_warps=plan.warps, maxnreg=plan.registers)
    kernels = [step_whole] if plan.launches == 1 else [step_measure, step_combine]
    arguments = (buffers, shape, numbers, method)
    return [Launch(kernel, (plan.programs,), arguments, keywords) for kernel in kernels], plan


def anderson_step(z: Tensor, *arguments: object) -> None:
    """The operator, for arguments the kernels cover."""
    if z.numel() == 0:
        return
    launches, _ = prepare_step(z, *arguments)  # type: ignore[arg-type]
    with torch.cuda.device(z.device) if z.is_cuda else contextlib.nullcontext():
        for launch in launches:
            launch.run()
