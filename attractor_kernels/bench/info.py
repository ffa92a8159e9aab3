"""What `attractor-kernels info` tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table

from attractor_kernels import backends

from . import machine
from .profile import tile_plan


def collect(plans: Sequence[tuple[int, int]] = (), solver: str = "auto") -> dict[str, Any]:
    """Everything, as plain values. `kernels` is None where the compiled part is missing."""
    facts = machine.facts_module()
    kernels: dict[str, Any] | None = None
    if facts is not None:
        kernels = {
            "instruction_set": facts.instruction_set(),
            "compiled_in": dict(facts.instruction_sets()),
            "cache_bytes": dict(facts.cache_bytes()),
            "built_with": dict(facts.build()),
        }
    return {
        "versions": machine.versions(),
        "machine": machine.machine(),
        "backends": {
            name: {"usable": bool(found.usable), "reason": found.reason} for name, found in backends.available().items()
        },
        "kernels": kernels,
        "cuda_in_torch": torch.version.cuda,
        "plans": {f"{batch}x{dim}": tile_plan(batch, dim, solver) for batch, dim in plans},
    }


def table_facts(table: backends.PlanTable) -> dict[str, Any]:
    """Of a table of measured plans."""
    chosen = sum(bool(entry.choices) for entry in table.entries)
    return {"device": table.device.name, **table.about, "entries": len(table.entries), "with_choices": chosen}


def renderables(found: dict[str, Any]) -> Iterator[RenderableType]:
    """The same for people."""
    yield _table("versions", found["versions"])
    where = dict(found["machine"])
    where["flags"] = " ".join(where["flags"])
    yield _table("machine", where)
    table = Table("backend", "usable", "", title="backends", title_justify="left")
    for name, backend in found["backends"].items():
        table.add_row(name, "[green]yes" if backend["usable"] else "[red]no", backend["reason"])
    yield table
    kernels = found["kernels"]
    if kernels is None:
        yield "kernels: the compiled part is missing (attractor_kernels._facts cannot be imported)"
    else:
        built = dict(kernels["built_with"])
        flags = built.pop("kernel_flags", {})
        cuda = built.pop("cuda")
        built["CUDA"] = cuda["absent"] or f"nvcc {cuda['nvcc']} for {cuda['architectures']}"
        rows = {"instruction set in use": kernels["instruction_set"]}
        for name, has in kernels["compiled_in"].items():
            rows[f"  {name}"] = f"{'on this processor' if has else 'not on this processor'}: {flags.get(name, '')}"
        rows |= {f"cache {level}": f"{size / 1024:.0f} KiB" for level, size in kernels["cache_bytes"].items()}
        rows |= {f"built with {name}": value for name, value in built.items()}
        yield _table("kernels", rows)
    if "table" in found:
        yield _table("table of measured plans", found["table"])
    for shape, plan in found["plans"].items():
        yield _table(f"plan {shape}", plan or {"": "no compiled kernels, no plan"})


def _table(title: str, rows: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, _text(value))
    return table


def _text(value: Any) -> str:
    return ", ".join(f"{name}: {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)
