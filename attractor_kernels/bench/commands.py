"""The commands, as typer sees them: options in, a table or JSON out. The work is done elsewhere."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from . import machine
from .cases import CELLS, DTYPES, FAMILIES, PASSES, SHAPES, Case, parse_shape

app = typer.Typer(
    help="Fixed-point solves: what is installed, how fast they are, where their time goes.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs; nothing else goes to standard output.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch and of the kernels. Default: torch's own.")]
OutputFolder = Annotated[Path | None, typer.Option("--output", file_okay=False, help="Folder for what is written.")]

QUICK_SHAPES = ((1, 64), (256, 128), (64, 1024))


def console(as_json: bool) -> Console:
    """Where people are talked to: standard error when standard output is for a program."""
    out = Console(stderr=as_json)
    if not out.is_terminal:
        out.width = max(out.width, 120)  # a file has room for a whole table
    return out


def emit(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def choices(name: str, values: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Values of a repeatable option that also takes commas; all that are known if it was not given."""
    found = tuple(part for value in values or () for part in value.split(",") if part)
    for value in found:
        if value not in known:
            raise typer.BadParameter(f"{name} must be one of {', '.join(known)}; got {value!r}")
    return found or tuple(known)


def shapes(values: Sequence[str] | None, default: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    parts = [part for value in values or () for part in value.split(",") if part]
    return tuple(_checked(parse_shape, part) for part in parts) or tuple(default)


def _checked(parse: Callable[..., Any], *values: Any) -> Any:
    try:
        return parse(*values)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def need(*modules: str) -> None:
    """Fails now rather than after minutes of work (see attractor_kernels.cli)."""
    for module in modules:
        importlib.import_module(module)


def default_output() -> Path:
    """benchmarks/results in a checkout, a folder of our own elsewhere."""
    checkout = Path("benchmarks/results")
    return checkout if checkout.is_dir() else Path("attractor-kernels-results")


@app.command()
def info(
    plan: Annotated[
        list[str] | None,
        typer.Option(
            help="Also the CPU's tile plan of this shape, as 1024x256; or, by name, how this operator is launched on a "
            "GPU: solve_affine, anderson_step, residual_norm, ..."
        ),
    ] = None,
    solver: Annotated[str, typer.Option(help="Solver of a plan: auto, picard, anderson.")] = "auto",
    shape: Annotated[str, typer.Option(help="batch x state of a GPU plan.")] = "4096x256",
    device: Annotated[
        str | None,
        typer.Option(
            help="GPU of a plan, which need not be there: A100, H100, B200. Default: that of the table, or H100."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="Of a GPU plan: triton, cuda.")] = "triton",
    history: Annotated[int, typer.Option(min=1, max=32, help="Differences a GPU plan keeps.")] = 5,
    hidden: Annotated[int, typer.Option(min=0, help="Hidden units of an ungated MLP. Default: as the state.")] = 0,
    dtype: Annotated[str, typer.Option(help="State of a GPU plan: float32, bfloat16, float16, float64.")] = "float32",
    precision: Annotated[str, typer.Option(help="Of a GPU plan: full, mixed.")] = "full",
    table: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Table of measured plans, as python -m benchmarks.gpu writes it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Versions, backends and why one cannot run, and what the kernels choose for this machine, or a GPU elsewhere."""
    from attractor_kernels.backends import PlanTable, use_plan_table

    from .contenders import PRECISIONS
    from .gpu_plan import BACKENDS, DEVICES, OPERATORS, STATE_DTYPES, Call, gpu_plan
    from .info import collect, renderables, table_facts

    chosen_solver = choices("solver", [solver], ("auto", "picard", "anderson"))[0]
    named = [part for value in plan or () for part in value.split(",") if part]
    operators = [name for name in named if name in OPERATORS]
    found = collect(shapes([name for name in named if name not in operators], ()), chosen_solver)
    measured = None if table is None else _checked(PlanTable.read, table)
    devices = DEVICES if measured is None else {**DEVICES, measured.device.name: measured.device}
    device = device or (measured.device.name if measured is not None else "H100")
    if device not in devices:  # a name may have a comma
        raise typer.BadParameter(f"device must be one of {', '.join(devices)}; got {device!r}")
    choices("backend", [backend], BACKENDS)
    choices("dtype", [dtype], STATE_DTYPES)
    choices("precision", [precision], PRECISIONS)
    batch, dim = _checked(parse_shape, shape)
    for name in operators:
        call = Call(name, batch, dim, hidden, chosen_solver, history, dtype, precision)
        title = f"{name} {shape} on {device}, {backend}"
        with use_plan_table(measured):
            found["plans"][title] = _checked(gpu_plan, call, devices[device], backend)
    if measured is not None:
        found["table"] = {"file": str(table), **table_facts(measured)}
    if as_json:
        emit(found)
        return
    for part in renderables(found):
        console(as_json).print(part)


@app.command()
def bench(
    shape: Annotated[list[str] | None, typer.Option(help="batch x state, as 1024x256. Repeat, or use commas.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help=", ".join((*CELLS, "callable")))] = None,
    family: Annotated[list[str] | None, typer.Option(help=", ".join(FAMILIES))] = None,
    dtype: Annotated[list[str] | None, typer.Option(help=", ".join(DTYPES))] = None,
    which: Annotated[list[str] | None, typer.Option("--pass", help=", ".join(PASSES))] = None,
    solver: Annotated[list[str] | None, typer.Option(help="auto (default), picard, anderson")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="mixed, full. Default: both.")] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="naive, compiled, torchdeq fpi, torchdeq anderson, jax, floor, or none. Default: all for "
            "the affine cell in float32, naive and floor for the others."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Timing per case with all baselines.")] = 2.5,
    quick: Annotated[bool, typer.Option("--quick", help="Three shapes and little time: to see that it works.")] = False,
    threads: Threads = None,
    output: OutputFolder = None,
    load: Annotated[Path | None, typer.Option(exists=True, help="Show a saved run instead of measuring.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the geometric means as Markdown.")] = None,
    save_baseline: Annotated[Path | None, typer.Option(help="Save the ratios to compare later runs against.")] = None,
    compare: Annotated[Path | None, typer.Option(exists=True, help="Fail if a ratio is worse than saved here.")] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, max=1.0, help="How much worse a ratio may be.")] = 0.3,
    as_json: Json = False,
) -> None:
    """Time solves against other ways to do them. Whoever's result is wrong gets no speed."""
    from .bench_command import Outputs, measure, show
    from .contenders import PRECISIONS, SOLVERS
    from .peers import BASELINES
    from .results import Report
    from .runs import Plan

    need("matplotlib")
    use_threads(threads)
    names: tuple[str, ...] | None = None
    if baseline:
        names = () if baseline == ["none"] else choices("baseline", baseline, tuple(BASELINES))
    cells = choices("cell", cell, (*CELLS, "callable"))
    plan = Plan(
        shapes=shapes(shape, QUICK_SHAPES if quick else SHAPES),
        families=choices("family", family, FAMILIES),
        cells=tuple(name for name in cells if name != "callable"),
        dtypes=choices("dtype", dtype, tuple(DTYPES)),
        passes=choices("pass", which, PASSES) if which else None,
        solvers=choices("solver", solver or ["auto"], tuple(SOLVERS)),
        precisions=choices("precision", precision, PRECISIONS),
        baselines=names,
        callables="callable" in cells,
        seconds=min(seconds, 0.3) if quick else seconds,
        min_repeats=3 if quick else 5,
    )
    out = console(as_json)
    report = Report.read(load) if load is not None else measure(plan, out)
    folder = output or (None if load is not None else default_output())
    worse = show(report, out, Outputs(folder, markdown, save_baseline, compare, tolerance), tables=not as_json)
    if as_json:
        emit(report.to_json())
    if worse:
        raise typer.Exit(1)


@app.command()
def profile(
    shape: Annotated[str, typer.Option(help="batch x state")] = "1024x256",
    cell: Annotated[str, typer.Option(help=", ".join(CELLS))] = "affine",
    family: Annotated[str, typer.Option(help=", ".join(FAMILIES))] = "orth",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    solver: Annotated[str, typer.Option(help="auto, picard, anderson")] = "auto",
    precision: Annotated[str, typer.Option(help="mixed, full")] = "full",
    seconds: Annotated[float, typer.Option(min=0.01, help="Of timing.")] = 6.0,
    threads: Threads = None,
    output: OutputFolder = None,
    as_json: Json = False,
) -> None:
    """Take one solve apart: where its time goes, how far it is from the machine, how many steps its problems take."""
    from .contenders import PRECISIONS, SOLVERS
    from .profile import take_apart
    from .profile_view import plot, renderables, to_json

    need("matplotlib")
    use_threads(threads)
    choices("solver", [solver], tuple(SOLVERS))
    choices("precision", [precision], PRECISIONS)
    case = _checked(Case, cell, family, *_checked(parse_shape, shape), dtype)
    out = console(as_json)
    with out.status(f"profiling {case}"):
        found = take_apart(case, solver, precision, seconds)
    path = plot(found, (output or default_output()) / f"profile-{cell}-{family}-{case.shape}-{solver}-{precision}.png")
    if as_json:
        emit({**to_json(found), "machine": machine.machine(), "versions": machine.versions(), "plot": str(path)})
        return
    for part in renderables(found):
        out.print(part)
    out.print(f"picture: {path}", soft_wrap=True)


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 12,
    state: Annotated[int, typer.Option(min=16, help="Size of the state.")] = 512,
    batch: Annotated[int, typer.Option(min=8, max=1024, help="Size of a batch.")] = 128,
    threads: Threads = None,
    output: OutputFolder = None,
    as_json: Json = False,
) -> None:
    """Train one classifier of handwritten digits twice, unrolled and through this package, and compare."""
    from .demo.command import run_demo
    from .demo.model import Settings

    need("matplotlib", "sklearn")
    use_threads(threads)
    settings = Settings(state_dim=state, batch=batch, epochs=epochs)
    found = run_demo(settings, console(as_json), output or default_output(), table=not as_json)
    if as_json:
        emit(found)
