"""Operator `anderson_step`: everything a solver does between two evaluations of a map, for all problems at once.

z, f(z) -> the next iterates: residual norms, stopping, Anderson mixing, the choice of Auto, the best iterate so far.
Iterates alternate between two buffers, so that the one before z is still there when z turns out to be worse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.reference import step as reference
from ..options import Auto, Picard, Solver
from ._declare import _LIBRARIES, make_tail

# problems, groups: leading sizes of `history`. trace: [max_steps, problems]. The step reads the iterates before z from
# `out` and overwrites them.
SCHEMA = (
    "anderson_step(Tensor z, Tensor fz, Tensor(a!) out, Tensor(b!) best, Tensor(c!) history, Tensor(d!) control, "
    "Tensor(e!) active, Tensor(f!)? trace, int solver, float damping, float ridge, float rtol, float atol, "
    "int max_steps, int min_steps, bool keep_best) -> ()"
)
_RESULT_DOUBLES, _STATE_DOUBLES = 3, 16  # csrc/cpu/anderson_step.h, and the sizes in step_buffers


def _chunk(entries: int, device: torch.device) -> int:
    """Entries whose sums are kept apart: kStepChunk there, chunk_entries of csrc/cuda/anderson_step.h on CUDA."""
    if device.type != "cuda":
        return 65536
    return max(4096, 1 << max(0, -(-entries // 4096) - 1).bit_length())


def _fake(*arguments: object) -> None:
    return None


for _library in _LIBRARIES:
    _library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{_library.ns}::anderson_step", _fake, lib=_library)
    _library.impl("anderson_step", reference.anderson_step, "CompositeExplicitAutograd")


class StepBuffers(NamedTuple):
    """What steps keep between evaluations of f; its size does not depend on the number of steps."""

    out: Tensor  # like z: the next iterates
    best: Tensor  # like z
    history: Tensor  # [problems, groups, 2, differences + 1, entries and padding]
    control: Tensor  # float64 [problems, columns]
    active: Tensor  # int64 [1]: problems still running
    trace: Tensor | None  # float32 [max_steps, problems]

    @property
    def status(self) -> Tensor:
        """uint8 [problems], values of `Status`; 255 where a problem still runs."""
        return self._result(0, torch.uint8)

    @property
    def steps(self) -> Tensor:
        """int32 [problems]."""
        return self._result(1, torch.int32)

    @property
    def residual(self) -> Tensor:
        """float32 [problems]."""
        return self._result(2, torch.float32)

    def _result(self, column: int, dtype: torch.dtype) -> Tensor:
        return self.control.new_empty(self.control.shape[0], dtype=dtype).copy_(self.control[:, column])


def step_buffers(
    z0: Tensor, problems: int, groups: int, solver: Solver, *, max_steps: int = 0, trace: bool = False
) -> StepBuffers:
    """Buffers for a solve that starts at z0, contiguous, [problems, groups, entries] in any shape.

    Args:
        solver: decides how much history is kept.
        max_steps: rows of the trace.
        trace: keep the relative residual of every step.

    Raises:
        ValueError: z0 does not divide into problems and groups, or is not contiguous.
    """
    count = problems * groups
    if z0.numel() % max(count, 1) or (count == 0 and z0.numel()):
        raise ValueError(f"z0 must divide into {problems} problems of {groups} groups, got shape {list(z0.shape)}")
    if not z0.is_contiguous():
        raise ValueError(f"z0 must be contiguous, got strides {z0.stride()}")
    entries = z0.numel() // max(count, 1)
    slots = 0 if isinstance(solver, Picard) else max(1, min(solver.history, entries)) + 1  # type: ignore[attr-defined]
    # Rows a power of two apart would share cache sets.
    stride = entries + 80 if entries >= 512 else entries
    chunks = max(1, -(-entries // _chunk(entries, z0.device)))
    group_doubles = 1 + slots + slots * slots + chunks * (5 + 2 * slots)
    columns = _RESULT_DOUBLES + _STATE_DOUBLES + groups * group_doubles
    return StepBuffers(
        out=torch.empty_like(z0),
        best=torch.empty_like(z0),
        history=z0.new_empty((problems, groups, 2, slots, stride)),
        control=z0.new_zeros((problems, columns), dtype=torch.float64),
        active=z0.new_full((1,), problems, dtype=torch.int64),
        trace=z0.new_full((max_steps, problems), torch.nan, dtype=torch.float32) if trace else None,
    )


def anderson_step(
    z: Tensor,
    fz: Tensor,
    buffers: StepBuffers,
    *,
    solver: Solver = Auto(),
    rtol: float = 1e-4,
    atol: float = 0.0,
    max_steps: int = 50,
    min_steps: int = 0,
    keep_best: bool = False,
) -> StepBuffers:
    """One step of every problem: takes in f(z) and writes the next iterates to `buffers.out`.

    Args:
        z: the current iterates, contiguous, in the shape `step_buffers` was given; float32, float64, bfloat16 or
            float16. At the first step the start.
        fz: f(z), like z.
        buffers: from `step_buffers`, or what the step before returned.
        solver: `Picard`, `Anderson` or `Auto`, the one given to `step_buffers`.
        rtol, atol, max_steps, min_steps: as in `attractor_kernels.fixed_point`; the same at every step.
        keep_best: end with the iterate of the lowest residual instead of the last one.

    Returns:
        The buffers for the next step, z in the place of `out`. Where a problem has ended, `out` holds its result.
        `active` counts those that still run.

    Raises:
        TypeError, ValueError, RuntimeError: an argument is not as above; the message names it.

    >>> from attractor_kernels.options import Anderson
    >>> z = torch.zeros(4, 3)
    >>> buffers = step_buffers(z, problems=4, groups=1, solver=Anderson())
    >>> while buffers.active:
    ...     done = anderson_step(z, torch.cos(z), buffers, solver=Anderson())
    ...     z, buffers = buffers.out, done
    >>> bool((z - torch.cos(z)).abs().max() < 1e-3)
    True
    """
    tail = make_tail(solver, rtol, atol, max_steps, min_steps, keep_best, buffers.trace is not None, False)
    torch.ops.attractor_kernels.anderson_step(
        z, fz, *buffers, tail.solver, tail.damping, tail.ridge, *tail[4:8], tail.keep_best
    )
    return buffers._replace(out=z)
