"""The correctness gate: what is wrong gets no speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-4  # relative L2 error of each result against the float64 reference


@dataclass(frozen=True)
class Verdict:
    """How far a contender's results are from the reference.

    Attributes:
        error: largest relative L2 error over its results.
        worst: name of the result that has it.
        worst_row: largest relative L2 error of any single row of the state, or None where no state is returned.
        passed: error is finite and at most the tolerance. One row wrong by a few percent fails the largest batch.
    """

    error: float
    worst: str
    worst_row: float | None
    passed: bool


def check(results: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = TOLERANCE) -> Verdict:
    """Compares results by name with what they must be."""
    missing = expected.keys() - results.keys()
    if missing:
        raise ValueError(f"results lack {', '.join(sorted(missing))}")
    error, worst = 0.0, ""
    for name, reference in expected.items():
        relative = relative_error(results[name], reference)
        if not relative <= error:  # also true of NaN
            error, worst = relative, name
        if relative != relative:
            break
    worst_row = None
    if "z" in expected:
        z, reference = results["z"].detach().double(), expected["z"]
        worst_row = float(((z - reference).norm(dim=1) / reference.norm(dim=1)).max())
    return Verdict(error, worst, worst_row, error <= tolerance)


def relative_error(result: Tensor, reference: Tensor) -> float:
    """|result - reference| / |reference|, in float64; NaN if the result has a NaN, or another shape."""
    if result.shape != reference.shape:
        return float("nan")
    return float((result.detach().double() - reference).norm() / reference.norm())
