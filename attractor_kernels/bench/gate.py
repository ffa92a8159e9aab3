"""The correctness gate: what is wrong gets no speed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-4  # relative L2 error of a result against the float64 reference
# Of others where their method cannot do better at the steps they are given: n unrolled steps leave an error of the
# order of n rho^n in the gradient where the state has one of rho^n; torchdeq's absolute ridge stalls its solves early.
# The strict one would leave nobody to compare with; ours has to meet the strict one everywhere.
LOOSE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """How far a contender's results are from the reference.

    Attributes:
        error: relative L2 error of the result that comes closest to its limit or exceeds it most.
        limit: that result's limit.
        worst: its name.
        worst_row: largest relative L2 error of any single row of the state, or None where no state is returned.
        passed: every error is finite and within its limit. One row wrong by a few percent fails the largest batch.
    """

    error: float
    limit: float
    worst: str
    worst_row: float | None
    passed: bool


def check(
    results: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    state_tolerance: float = TOLERANCE,
    gradient_tolerance: float = TOLERANCE,
) -> Verdict:
    """Compares results by name with what they must be; "z" is the state, the others are gradients."""
    missing = expected.keys() - results.keys()
    if missing:
        raise ValueError(f"results lack {', '.join(sorted(missing))}")
    errors = {name: relative_error(results[name], reference) for name, reference in expected.items()}
    limits = {name: state_tolerance if name == "z" else gradient_tolerance for name in errors}
    # What exceeds its limit the most; NaN exceeds any.
    worst = max(errors, key=lambda name: float("inf") if math.isnan(errors[name]) else errors[name] / limits[name])
    passed = all(errors[name] <= limits[name] for name in errors)
    worst_row = None
    if "z" in expected:
        z, reference = results["z"].detach().double(), expected["z"]
        worst_row = float(((z - reference).norm(dim=1) / reference.norm(dim=1)).max())
    return Verdict(errors[worst], limits[worst], worst, worst_row, passed)


def relative_error(result: Tensor, reference: Tensor) -> float:
    """|result - reference| / |reference|, in float64; NaN if the result has a NaN, or another shape."""
    if result.shape != reference.shape:
        return float("nan")
    return float((result.detach().double() - reference).norm() / reference.norm())
