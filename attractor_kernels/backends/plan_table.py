"""Plans that were measured: a table, loaded by hand, of what to choose for calls like those it was measured with.

`python -m benchmarks.gpu` writes one (benchmarks/README.md). An entry serves the calls of its operator, dtype,
precision and solver whose sizes round up to the same powers of two as its own. Which entry serves a call so depends on
the batch, and a row's bits may not: choices that change them are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from ..options import check_choice, check_int
from . import cuda
from .override import BACKENDS, CHANGES_BITS, CUDA_OPERATORS, all_told, check_choices, cuda_choices, told
from .plan import (
    REGISTERS,
    THREAD_REGISTERS,
    WARP_ENTRIES,
    DeviceFacts,
    power_of_two,
    product_precision,
    tile_columns,
    tile_rows,
    tile_warps,
)

SCHEMA = 1
SOLVERS = ("picard", "anderson", "auto")  # by their code
PRECISIONS = ("full", "mixed")
_DTYPES = {"triton": ("float32", "bfloat16", "float16"), "cuda": ("float32", "float64")}
_BYTES = {"float32": 4, "float64": 8}
_LARGEST = 1 << 40  # of a size
_LIBRARY_COLUMNS = 13  # of MeasuredPlan (csrc/cuda/plan_table.h)


class Kind(NamedTuple):
    """A call, as far as a table tells it from others.

    Attributes:
        dtype: of the state; of "cuda", that in which it is solved: float32 for the halves.
        precision: "full" or "mixed".
        hidden: units of an MLP; 0 for other cells.
    """

    backend: str
    operator: str
    dtype: str
    precision: str
    solver: str
    batch: int
    dim: int
    hidden: int = 0

    @property
    def largest(self) -> Kind:
        """The largest call that the same entry serves."""
        return self._replace(batch=bucket(self.batch)[1], dim=bucket(self.dim)[1], hidden=bucket(self.hidden)[1])

    def __str__(self) -> str:
        hidden = f" hidden {self.hidden}" if self.hidden else ""
        rest = f"{self.dtype} {self.precision} {self.solver} {self.batch}x{self.dim}{hidden}"
        return f"{self.backend} {self.operator} {rest}"


def kind_of(
    backend: str,
    operator: str,
    *,
    dtype: torch.dtype,
    mixed: bool,
    solver: int,
    batch: int,
    dim: int,
    hidden: int,
) -> Kind:
    """Of a call of an operator; solver: its code."""
    name = str(dtype).removeprefix("torch.")
    if backend == "cuda" and dtype.itemsize == 2:
        name = "float32"
    return Kind(backend, operator, name, PRECISIONS[mixed], SOLVERS[solver], batch, dim, hidden)


@dataclass(frozen=True)
class PlanEntry:
    """What is chosen for one kind of call; checked when it is made.

    Attributes:
        kind: what was measured; each of its sizes stands for those from past one power of two to the next.
        choices: as `use_plan` names them, without those that change bits; none: the model's were the best.
    """

    kind: Kind
    choices: Mapping[str, int]

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        check_choices(self.kind.operator, self.kind.backend, self.choices, "choices", "choices.{}")
        for name in CHANGES_BITS:
            if name in self.choices:
                raise ValueError(
                    f"choices.{name} changes a row's bits, which may not depend on the batch; use_plan chooses it for "
                    "all calls"
                )
        (_check_cuda if self.kind.backend == "cuda" else _check_triton)(self.kind, self.choices)


def _check_kind(kind: Kind) -> None:
    check_choice("backend", kind.backend, BACKENDS)
    check_choice("operator", kind.operator, CUDA_OPERATORS)
    check_choice("dtype", kind.dtype, _DTYPES[kind.backend])
    check_choice("precision", kind.precision, PRECISIONS)
    check_choice("solver", kind.solver, SOLVERS)
    for name in ("batch", "dim"):
        check_int(name, getattr(kind, name), low=1, high=_LARGEST)
    is_mlp = kind.operator.startswith("solve_mlp")
    check_int("hidden", kind.hidden, low=1 if is_mlp else 0, high=_LARGEST if is_mlp else 0)


def _check_cuda(kind: Kind, choices: Mapping[str, int]) -> None:
    allowed = (16,) if kind.dtype == "float64" else (8, 32)
    if choices.get("rows", allowed[0]) not in allowed:
        rows = " or ".join(map(str, allowed))
        raise ValueError(f"choices.rows must be {rows} in {kind.dtype}, got {choices['rows']}")
    if "crew" in choices and (kind.operator, kind.precision) != ("solve_affine", "full"):
        raise ValueError(
            f"choices.crew is for solve_affine in full precision, got it for {kind.operator} in {kind.precision}"
        )


def _check_triton(kind: Kind, choices: Mapping[str, int]) -> None:
    if "warps" in choices and "rows" not in choices:
        raise ValueError("choices.warps must come with choices.rows: whether they fit each other decides a row's bits")
    if "rows" not in choices:
        return
    rows, columns = choices["rows"], tile_columns(kind.dim)
    allowed = tile_rows(product_precision(getattr(torch, kind.dtype), kind.precision == "mixed"))
    if rows not in allowed:
        raise ValueError(
            f"choices.rows must be {' or '.join(map(str, allowed))} in {kind.dtype}, {kind.precision}: a row has other "
            f"bits in other tiles, and they may not depend on the batch; got {rows}"
        )
    warps = choices.get("warps", tile_warps(rows, columns))
    if rows * columns < warps * WARP_ENTRIES:
        raise ValueError(
            f"choices.rows must be at least {-(-warps * WARP_ENTRIES // columns)} with {warps} warps and {kind.dim} "
            f"entries, or a row's sums are added in another order, which may not depend on the batch; got {rows}"
        )
    # A kernel that serves a longer history than was measured takes more of them.
    registers = choices.get("registers", THREAD_REGISTERS)
    if registers * warps * 32 > REGISTERS:
        raise ValueError(
            f"choices.registers must be at most {REGISTERS // (warps * 32)} with {warps} warps, got {registers}"
        )


@dataclass(frozen=True)
class PlanTable:
    """Choices by kind of call, measured on one device; checked when it is made.

    Attributes:
        device: on others the table says nothing. They are told apart by their names.
        about: what the file says of its origin: "date", "versions", "commit".
    """

    device: DeviceFacts
    entries: tuple[PlanEntry, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found: dict[Kind, int] = {}
        for i, entry in enumerate(self.entries):
            first = found.setdefault(entry.kind.largest, i)
            if first != i:
                raise ValueError(f"entries[{i}] serves the same calls as entries[{first}]: {entry.kind}")

    @cached_property
    def _choices(self) -> dict[Kind, Mapping[str, int]]:
        return {entry.kind.largest: entry.choices for entry in self.entries}

    @cached_property
    def contents(self) -> Hashable:
        """Equal for tables that choose the same."""
        return self.device, frozenset((kind, frozenset(found.items())) for kind, found in self._choices.items())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PlanTable:
        """A table from its file.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no such table; says which field is wrong, what it must be and what was found.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except (TypeError, ValueError) as error:
            what = "is not JSON: " if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) else ""
            raise ValueError(f"{os.fspath(path)}: {what}{error}") from error

    @classmethod
    def from_json(cls, found: Any) -> PlanTable:
        """From plain values. Raises TypeError or ValueError, naming the field."""
        if isinstance(found, dict) and found.get("schema", SCHEMA) != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}, got {found['schema']!r}")
        about = ("date", "versions", "commit")
        _check_fields("the table", found, ("schema", "device", "entries"), about)
        if not isinstance(found["entries"], list):
            raise TypeError(f"entries must be a list, got {_shown(found['entries'])}")
        entries = tuple(_entry(f"entries[{i}]", one) for i, one in enumerate(found["entries"]))
        return cls(_device(found["device"]), entries, {name: found[name] for name in about if name in found})

    def choices(self, device: str, kind: Kind) -> Mapping[str, int]:
        """What is chosen for a call on the device of that name; nothing where there is no entry."""
        return self._choices.get(kind.largest, {}) if device == self.device.name else {}

    def library_rows(self, device: str) -> list[tuple[int, ...]]:
        """For a device of that name, as the CUDA library takes them: MeasuredPlan of csrc/cuda/plan_table.h."""
        if device != self.device.name:
            return []
        return [_library_row(e.kind, e.choices) for e in self.entries if e.kind.backend == "cuda" and e.choices]


def _library_row(kind: Kind, choices: Mapping[str, int]) -> tuple[int, ...]:
    rows, blocks, _, crew, _ = cuda_choices(choices)
    call = (CUDA_OPERATORS.index(kind.operator), _BYTES[kind.dtype], PRECISIONS.index(kind.precision))
    sizes = [end for n in (kind.batch, kind.dim, kind.hidden) for end in bucket(n)]
    return (*call, SOLVERS.index(kind.solver), *sizes, rows, blocks, crew)


def bucket(n: int) -> tuple[int, int]:
    """The least and the most of the sizes that go together with n.

    >>> [bucket(n) for n in (0, 1, 2, 3, 4, 5)]
    [(0, 0), (1, 1), (2, 2), (3, 4), (3, 4), (5, 8)]
    """
    most = power_of_two(n) if n else 0
    return most // 2 + 1 if most > 1 else most, most


def _check_fields(where: str, found: Any, needed: tuple[str, ...], others: tuple[str, ...] = ()) -> None:
    if not isinstance(found, dict):
        raise TypeError(f"{where} must be an object, got {_shown(found)}")
    for name in needed:
        if name not in found:
            raise ValueError(f"{where} must have {name!r}, got only {', '.join(map(repr, found)) or 'nothing'}")
    for name in found:
        if name not in (*needed, *others):
            raise ValueError(f"{where} must have no {name!r}, but {', '.join((*needed, *others))}")


def _entry(where: str, found: Any) -> PlanEntry:
    _check_fields(where, found, (*Kind._fields[:-1], "choices"), ("hidden", "measured"))
    if not isinstance(found["choices"], dict):
        raise TypeError(f"{where}.choices must be an object, got {_shown(found['choices'])}")
    try:
        return PlanEntry(Kind(**{name: found[name] for name in Kind._fields if name in found}), found["choices"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}.{error}") from error


def _device(found: Any) -> DeviceFacts:
    counts = ("multiprocessors", "l2_bytes", "shared_bytes")
    _check_fields("device", found, ("name", "capability", *counts))
    if not isinstance(found["name"], str) or not found["name"]:
        raise TypeError(f"device.name must be a text, got {_shown(found['name'])}")
    capability = found["capability"]
    if not isinstance(capability, list) or len(capability) != 2:
        raise TypeError(f"device.capability must be a list of two numbers, got {_shown(capability)}")
    major, minor = (check_int(f"device.capability[{i}]", one, low=0) for i, one in enumerate(capability))
    sizes = {name: check_int(f"device.{name}", found[name], low=1) for name in counts}
    return DeviceFacts(found["name"], (major, minor), **sizes)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_in_use: PlanTable | None = None


class use_plan_table:
    """Launches kernels as a table has it, where nothing was chosen by `use_plan`: from now on, or in a `with` block.

    Args:
        table: its file, as `python -m benchmarks.gpu --only plans` writes it; or a PlanTable; None: no table.

    Bits are those of the model's plans. A call that no entry serves, or on another device, is left to the model.

    Raises:
        TypeError: it is neither.
        OSError: the file cannot be read.
        ValueError: it is no table of plans; says which field is wrong, what it must be and what was found.

    >>> from attractor_kernels.backends.plan import H100
    >>> entry = PlanEntry(Kind("triton", "solve_affine", "float32", "full", "auto", batch=4096, dim=64), {"rows": 32})
    >>> with use_plan_table(PlanTable(H100, (entry,))):
    ...     choices_for("H100", entry.kind._replace(batch=3000))
    ({'rows': 32}, 'table')
    """

    def __init__(self, table: str | os.PathLike[str] | PlanTable | None) -> None:
        self.table = _given(table)
        self._previous = _in_use
        _set(self.table)

    def __enter__(self) -> use_plan_table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _set(self._previous)


def _given(table: Any) -> PlanTable | None:
    if table is None or isinstance(table, PlanTable):
        return table
    if not isinstance(table, (str, os.PathLike)):
        of = type(table).__name__
        raise TypeError(f"use_plan_table(table) must be a path, a PlanTable or None, got {table!r} of type {of}")
    return PlanTable.read(table)


def in_use() -> PlanTable | None:
    return _in_use


def choices_for(device: str, kind: Kind) -> tuple[Mapping[str, int], str]:
    """What is chosen for a call, and who chose: "hand", "table", or "model" where nothing is.

    A choice by hand stands alone: a table's others were measured without it.
    """
    if by_hand := told(kind.operator, kind.backend):
        return by_hand, "hand"
    found = _in_use.choices(device, kind) if _in_use is not None else {}
    return found, "table" if found else "model"


def plans_in_use() -> Hashable:
    """What was chosen by hand and by a table, for all calls; equal where the same plans are launched."""
    return all_told(), None if _in_use is None else _in_use.contents


def _set(table: PlanTable | None) -> None:
    global _in_use
    _in_use = table
    # The kernels plan for themselves, in the library, where there is one.
    if cuda.library_obstacle() is None:
        devices, rows = _for_library(table)
        torch.ops.attractor_kernels_plans.table(
            devices, torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), _LIBRARY_COLUMNS)
        )


def _for_library(table: PlanTable | None) -> tuple[int, list[tuple[int, ...]]]:
    """The devices that a table is of, a bit each, and its rows."""
    if table is None or not (rows := table.library_rows(table.device.name)):
        return 0, []
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return sum(1 << i for i, name in enumerate(names) if name == table.device.name), rows
