"""Compiles what a launch would run, for a GPU that is not there, and reads what the assembler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from attractor_kernels.backends import plan
from attractor_kernels.backends.triton import launch, step_launch
from attractor_kernels.ops._declare import Tail
from attractor_kernels.ops.anderson_step import step_buffers
from attractor_kernels.options import Anderson, Auto, Picard, Solver

DEVICES = {80: plan.A100, 90: plan.H100, 100: plan.B200}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class _Absent:
    """A driver for a device that only says what it would be."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # compiled kernels are kept per device

    def get_current_stream(self, device: int) -> int:
        return 0


class Usage(NamedTuple):
    registers: int
    stack: int  # bytes a thread: spills
    shared: int  # bytes a block


def compile_launch(call: launch.Launch, architecture: int) -> Any:
    """The kernel that `call.run()` would launch."""
    driver.set_active(_Absent(architecture))
    return call.kernel.warmup(*call.arguments, grid=call.grid, **call.keywords)


def usage(kernel: Any) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [_CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return Usage(int(found[1]), int(found[2]), kernel.metadata.shared)


def tail(solver: Solver, mixed: bool = False, trace: bool = False, keep_best: bool = False) -> Tail:
    history = getattr(solver, "history", 1)
    return Tail(solver.code, history, 1.0, 1e-8, 1e-5, 0.0, 50, 0, keep_best, trace, mixed)


def solve_call(
    name: str, batch: int, dim: int, hidden: int, options: Tail, dtype: torch.dtype = torch.float32, **choices: Any
) -> tuple[Any, ...]:
    """Arguments of a solving operator; choices: activation, norm, gated."""
    activation, norm = choices.get("activation", 1), choices.get("norm", 2)
    halves = 2 if choices.get("gated") else 1

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    z0, v = new(batch, dim), new(batch, dim)
    if name == "solve_affine":
        return (z0, v, new(dim, dim), None, None, activation, 0, *options)
    if name == "solve_gated":
        return (z0, new(batch, 2 * dim), new(2 * dim, dim), *options)
    if name.startswith("solve_gated"):
        return (z0, v, new(batch, 2 * dim), new(batch, dim), new(2 * dim, dim), *options)
    w1, w2, leak = new(halves * hidden, dim), new(dim, hidden), new(dim)
    if name == "solve_mlp":
        kind = 9 if halves == 2 else activation
        return (z0, v, w1, new(halves * hidden), w2, new(dim), leak, 0.5, norm, 1e-5, kind, *options)
    return (z0, v, new(batch, halves * hidden), new(batch, dim), new(batch), w1, w2, leak, 0.5, norm, *options)


def solve_kernel(
    name: str, architecture: int, arguments: tuple[Any, ...], rows: int | None = None
) -> tuple[Any, plan.SolvePlan]:
    call, _, planned = launch.prepare(name, arguments, DEVICES[architecture], rows)
    return compile_launch(call, architecture), planned


def step_kernels(
    architecture: int, problems: int, groups: int, entries: int, solver: Solver, dtype: torch.dtype
) -> list[Any]:
    z = torch.empty(problems, groups, entries, dtype=dtype)
    buffers = step_buffers(z, problems, groups, solver, max_steps=3, trace=True)
    options = (solver.code, 1.0, 1e-8, 1e-5, 0.0, 50, 0, False)
    calls, _ = step_launch.prepare_step(z, z, *buffers, *options)
    return [compile_launch(call, architecture) for call in calls]


SOLVERS = {"picard": Picard(), "anderson": Anderson(history=5), "auto": Auto(history=5), "auto6": Auto(history=6)}
