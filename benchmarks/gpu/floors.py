"""What the machine reaches, measured first, and how long a kernel must therefore take at least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attractor_kernels.bench.cases import Problem


@dataclass(frozen=True)
class Ceilings:
    """Rates that were measured in this run.

    Attributes:
        copy: bytes read and written a second.
        products: operations a second of a large product, by type: "float32", "tf32", "bfloat16".
        special: special functions a second.
        launch: seconds of the shortest kernel.
    """

    copy: float
    products: dict[str, float]
    special: float
    launch: float

    @classmethod
    def of(cls, cases: dict[str, Any]) -> Ceilings:
        """From the results of the section `ceilings`."""
        return cls(
            copy=cases["copy"]["bytes_per_second"],
            products={name: cases[f"product {name}"]["operations_per_second"] for name in PRODUCTS},
            special=cases["special functions"]["evaluations_per_second"],
            launch=cases["launch"]["seconds"],
        )

    def product_rate(self, precision: str) -> float:
        """The fastest way there is to that precision: "full" may split an operand into three TF32 parts."""
        if precision == "mixed":
            return max(self.products.values())
        return max(self.products["float32"], self.products["tf32"] / 3)


PRODUCTS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Floor:
    """Seconds, and what they are spent on."""

    seconds: float
    bound: str

    def facts(self) -> dict[str, Any]:
        """As an entry of the results keeps it."""
        return {"floor_seconds": self.seconds, "bound": self.bound}


def largest(times: dict[str, float]) -> Floor:
    bound = max(times, key=lambda name: times[name])
    return Floor(times[bound], bound)


def solve_floor(problem: Problem, row_steps: float, precision: str, ceilings: Ceilings) -> Floor:
    """Of a solve in which all rows together take so many steps."""
    return largest(
        {
            "products": row_steps * problem.flops_per_row_step / ceilings.product_rate(precision),
            "special functions": row_steps * problem.map.activations(problem.case.dim) / ceilings.special,
            "bytes": problem.moved_bytes / ceilings.copy,
            "launch": ceilings.launch,
        }
    )


def step_bytes(entries: int, history: int, item_bytes: int) -> int:
    """What a fused step must move: csrc/README.md, anderson_step. history 0: a plain step."""
    return (2 * history + 5 if history else 3) * entries * item_bytes


def step_floor(entries: int, history: int, item_bytes: int, ceilings: Ceilings) -> Floor:
    return largest({"bytes": step_bytes(entries, history, item_bytes) / ceilings.copy, "launch": ceilings.launch})
