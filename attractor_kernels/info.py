"""What a solve reports: how each problem ended, after how many steps, at which residual."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["ConvergenceError", "SolveInfo", "Status"]


class Status(IntEnum):
    """How a problem ended. The values are those of csrc/common/stopping.h.

    >>> Status(0)
    <Status.CONVERGED: 0>
    """

    CONVERGED = 0
    MAX_STEPS = 1
    DIVERGED = 2
    NONFINITE = 3
    STAGNATED = 4


class ConvergenceError(RuntimeError):
    """Raised by `SolveInfo.raise_if_failed`."""


class SolveInfo:
    """How a solve went. All tensors stay on the state's device; nothing is read back until asked for.

    Attributes:
        steps: int32 [*batch], evaluations of f behind the value returned.
        residual: float32 [*batch], |f(z) - z| / |f(z)| of the value returned.
        status: uint8 [*batch], values of `Status`.
        converged: bool [*batch].
        trace: float32 [max_steps, *batch], the residual of every step and NaN after a problem ended; or None.
        backend: name of the backend that ran. Where the host drove the steps of a loop on a CUDA device, which costs
            a launch and more for each, why it did follows in parentheses: "cuda (host loop: the map cannot be recorded:
            it draws random numbers)".
        adjoint: the `SolveInfo` of the last backward solve, or None before the first.
    """

    __slots__ = ("_batch_shape", "_packed", "_parts", "_trace", "adjoint", "backend")

    def __init__(
        self,
        steps: Tensor,  # [P] or [*batch]
        residual: Tensor,  # [P] or [*batch]
        status: Tensor,  # [P] or [*batch]
        trace: Tensor | None,  # [max_steps, P] or [max_steps, *batch]
        backend: str,
        batch_shape: torch.Size | None = None,  # None: the tensors have their final shape
    ) -> None:
        self._parts = (steps, residual, status)
        self._packed: Tensor | None = None
        self._trace = trace
        self._batch_shape = batch_shape
        self.backend = backend
        self.adjoint: SolveInfo | None = None

    @classmethod
    def of_packed(cls, packed: Tensor, backend: str) -> SolveInfo:
        """The info whose steps, residual and status lie one after the other in uint8 [9 P], as a small solve writes
        them: tensors of their own would cost more than the solve, and are made whenever they are asked for.
        """
        info = cls.__new__(cls)
        info._packed = packed
        info._trace = info._batch_shape = info.adjoint = None
        info.backend = backend
        return info

    def _part(self, index: int) -> Tensor:
        packed = self._packed
        if packed is None:
            return self._parts[index]
        # Not kept: a view belongs to the modes of torch in which it was made.
        count = packed.numel() // 9
        if index == 0:
            return packed[: 4 * count].view(torch.int32)
        return packed[4 * count : 8 * count].view(torch.float32) if index == 1 else packed[8 * count :]

    def like(self, steps: Tensor, residual: Tensor, status: Tensor) -> SolveInfo:
        """The info of another solve of the same batch on the same backend."""
        return SolveInfo(steps, residual, status, None, self.backend, self._batch_shape)

    def _shaped(self, value: Tensor) -> Tensor:
        return value if self._batch_shape is None else value.reshape(self._batch_shape)

    @property
    def steps(self) -> Tensor:
        return self._shaped(self._part(0))

    @property
    def residual(self) -> Tensor:
        return self._shaped(self._part(1))

    @property
    def status(self) -> Tensor:
        return self._shaped(self._part(2))

    @property
    def converged(self) -> Tensor:
        return self.status == 0

    @property
    def trace(self) -> Tensor | None:
        if self._trace is None or self._batch_shape is None:
            return self._trace
        return self._trace.reshape(self._trace.shape[0], *self._batch_shape)

    def raise_if_failed(self) -> None:
        """Waits for the solve and raises `ConvergenceError` if a problem, forward or adjoint, did not converge.

        The message names how many problems failed, how they ended, and the worst residual.
        """
        self._raise_if_failed("problems")
        if self.adjoint is not None:
            self.adjoint._raise_if_failed("adjoint problems")

    def _raise_if_failed(self, what: str) -> None:
        residual, status = self._part(1).reshape(-1), self._part(2).reshape(-1)
        failed = status != 0
        count = int(failed.sum())
        if count == 0:
            return
        codes, counts = torch.unique(status[failed], return_counts=True)
        ends = ", ".join(f"{Status(code).name}: {n}" for code, n in zip(codes.tolist(), counts.tolist(), strict=True))
        # torch.max propagates NaN, so a NaN residual counts as the worst.
        worst = float(residual[failed].max())
        raise ConvergenceError(
            f"{count} of {status.numel()} {what} did not converge ({ends}); worst relative residual {worst:.3g}"
        )

    def __repr__(self) -> str:
        parts = [f"batch={tuple(self.status.shape)}", f"backend={self.backend!r}"]
        if self._trace is not None:
            parts.append("trace=True")
        if self.adjoint is not None:
            parts.append("adjoint=solved")
        return f"SolveInfo({', '.join(parts)})"
