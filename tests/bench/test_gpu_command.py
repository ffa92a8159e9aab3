"""`python -m benchmarks.gpu`: the whole of it on a CPU, and what it makes of what tools and kernels may answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from attractor_kernels.bench.cases import Case, Problem
from attractor_kernels.bench.results import Entry, Row
from benchmarks.gpu import floors, report, sanitizer, sections, suite
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.context import ROOT, Context
from benchmarks.gpu.device import Dry, tally
from benchmarks.gpu.sizes import DRY, FULL, Transformer
from benchmarks.gpu.state import DONE, State
from benchmarks.gpu.targets import targets


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([*(path for path in sys.path if path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def test_a_dry_run(tmp_path):
    done = command("--out", tmp_path, "--dry", "--commit", "abc")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["sections"]) == set(sections.SECTIONS)
    for name, section in found["sections"].items():
        assert section["status"] == "done" and not section["failed"], name
        assert section["cases"], name
        assert json.loads((tmp_path / f"{name}.json").read_text())["status"] == "done"
    assert found["commit"] == "abc" and found["versions"]["torch"] == torch.__version__
    assert found["sections"]["suite"]["cases"]["gpu"]["collected"] > 100
    cells = {row["cell"] for row in found["rows"]}
    assert cells == {"anderson_step", "affine", "mlp", "gated", "callable"}
    for row in found["rows"]:
        mine = [entry for entry in row["entries"].values() if entry["ours"]]
        assert mine and all(entry["seconds"] > 0 and entry["error"] is not None for entry in mine)
    assert list(tmp_path.glob("times-*.png")) and (tmp_path / "memory.png").stat().st_size > 5000
    assert done.stdout.rindex("fastest of ours") < done.stdout.rindex("sections")
    assert "met" not in done.stdout  # a CPU is asked for nothing

    app = typer.Typer()
    app.command()(main)
    again = CliRunner().invoke(app, ["--out", str(tmp_path), "--dry", "--from", "activity"])
    assert again.exit_code == 0, again.output
    assert "activity:" in again.output and "cells:" not in again.output
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == found["rows"]


def test_sections_are_chosen_by_name():
    names = [section.name for section in sections.chosen([], "maps")]
    assert names == ["maps", "training", "activity", "plans"]
    assert [section.name for section in sections.chosen(["cells", "build"], None)] == ["build", "cells"]
    with pytest.raises(ValueError, match=r"a section must be one of build, .*, got 'cell'"):
        sections.chosen(["cell"], None)


def test_a_section_says_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match="this needs the section ceilings"):
        Context(tmp_path, dry=True).earlier("ceilings")


def test_the_installed_wheel_comes_before_the_sources(tmp_path):
    context = Context(tmp_path)
    assert context.environment()["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    context.site.mkdir()
    assert context.environment()["PYTHONPATH"].split(os.pathsep)[:2] == [str(context.site), str(ROOT)]


JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="1" skipped="2" tests="5">
<testcase classname="tests.gpu.test_rows" name="test_a"/>
<testcase classname="tests.gpu.test_rows" name="test_b"><failure message="assert 1 == 2">...</failure></testcase>
<testcase classname="tests.gpu.test_rows" name="test_c"><error message="no device">...</error></testcase>
<testcase classname="tests.gpu.test_rows" name="test_d"><skipped message="no kernel"/></testcase>
<testcase classname="tests.gpu.test_rows" name="test_e"><skipped message="no kernel"/></testcase>
</testsuite></testsuites>"""


def test_a_report_of_pytest(tmp_path):
    path = tmp_path / "suite.xml"
    path.write_text(JUNIT)
    found = suite.read_report(path)
    assert (found["tests"], found["failures"], found["errors"], found["skipped"]) == (5, 1, 1, 2)
    assert found["skips"] == {"no kernel": 2}
    assert found["problems"] == [
        "tests.gpu.test_rows::test_b: assert 1 == 2",
        "tests.gpu.test_rows::test_c: no device",
    ]
    path.write_text('<testsuites><testsuite tests="0"/></testsuites>')
    assert suite.read_report(path)["problems"] == ["no test was run"]


def test_reports_of_the_sanitizer():
    clean = "all cases ran\n========= ERROR SUMMARY: 0 errors\n"
    assert sanitizer.read_report(clean) == {"errors": 0, "problems": []}
    found = sanitizer.read_report(
        "all cases ran\n========= Invalid __global__ read\n========= ERROR SUMMARY: 2 errors\n"
    )
    assert found["errors"] == 2 and "========= Invalid __global__ read" in found["problems"]
    races = "all cases ran\n========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n"
    assert sanitizer.read_report(races)["errors"] == 3
    with pytest.raises(RuntimeError, match="there is no summary"):
        sanitizer.read_report("Segmentation fault")
    with pytest.raises(RuntimeError, match="did not run to their end"):
        sanitizer.read_report("========= ERROR SUMMARY: 0 errors\n")


def test_what_a_profile_counts():
    events = [("cudaLaunchKernel", False), ("cuLaunchKernelEx", False), ("cudaGraphLaunch", False)]
    events += [("cudaMemcpyAsync", False), ("cudaStreamSynchronize", False), ("aten::add", False)]
    events += [("step_kernel", True), ("Memcpy DtoH (Device -> Pageable)", True)]
    assert tally(events) == {"launches": 4, "waits": 1, "kernels": 1}


def test_the_peak_of_a_call_on_the_cpu():
    def call() -> None:
        a = torch.zeros(1 << 18)  # 1 MiB
        b = a + 1
        del a
        b.add_(b * 2)

    assert Dry().peak_bytes(call) == pytest.approx(2 << 20, abs=1024)


CEILINGS = floors.Ceilings(
    copy=3e12, products={"float32": 5e13, "tf32": 4.5e14, "bfloat16": 8e14}, special=4e12, launch=2e-6
)


def test_floors():
    assert CEILINGS.product_rate("full") == pytest.approx(1.5e14)  # three TF32 products
    assert CEILINGS.product_rate("mixed") == pytest.approx(8e14)
    problem = Problem(Case("affine", "orth", 64, 32))
    small = floors.solve_floor(problem, 64 * 10, "mixed", CEILINGS)
    assert (small.seconds, small.bound) == (2e-6, "launch")
    many = floors.solve_floor(problem, 1e9, "full", CEILINGS)
    assert many.bound == "products"
    assert many.seconds == pytest.approx(1e9 * 2 * 32 * 32 / 1.5e14)
    assert floors.solve_floor(problem, 1e9, "mixed", CEILINGS).bound == "special functions"
    assert floors.step_bytes(10, history=5, item_bytes=4) == 600
    assert floors.step_bytes(10, history=0, item_bytes=2) == 60
    assert floors.step_floor(10**8, 5, 4, CEILINGS).seconds == pytest.approx(6e9 / 3e12)


def test_sizes_are_those_that_are_asked_for():
    """Every target is about a size that is run."""
    shapes = {(solve.cell, solve.family, solve.batch, solve.dim) for solve in FULL.cells}
    assert {("affine", "orth", 65536, dim) for dim in (128, 256)} <= shapes
    assert {("affine", "orth", 4096, dim) for dim in (64, 128, 256, 512)} <= shapes
    assert {("affine", "orth", batch, 1024) for batch in (1, 32)} <= shapes
    assert {step.entries for step in FULL.steps} >= {512, 10**5, 10**6, 10**7}
    assert {case.batch for case in FULL.maps} == {1, 768}
    assert (min(FULL.memory_steps), max(FULL.memory_steps)) == (8, 512)
    assert set(vars(DRY)) == set(vars(FULL))


def row(cell: str, family: str, batch: int, dim: int, times: dict[str, float], which: str = "forward", **facts) -> Row:
    entries = {}
    for name, seconds in times.items():
        ours = name.split()[0] in ("picard", "anderson", "auto", "cuda", "layer")
        given = {"steps_mean": 10.0, "backend": name.split()[-1], **facts} if ours else {}
        entries[name] = Entry(name, ours, seconds, seconds, seconds, 5, 1, facts=given)
    return Row(cell, family, batch, dim, "float32", which, 10, entries)


def states_of(rows: list[Row], **others: dict) -> dict[str, State]:
    cases = {"cells": {"all": {"rows": [one.to_json() for one in rows]}}, **others}
    return {name: State(name, DONE, cases=case) for name, case in cases.items()}


def test_targets_that_are_met_and_missed():
    fast = {
        "picard mixed cuda": 1e-4,
        "picard mixed triton": 2e-4,
        "naive": 3e-3,
        "compiled graphed": 3e-4,
        "jax": 1e-3,
    }
    rows = [row("affine", "orth", 4096, dim, fast) for dim in (64, 128, 256, 512)]
    rows += [row("affine", "orth", 65536, dim, fast, floor_seconds=6e-5) for dim in (128, 256)]
    rows += [row("anderson_step", "history 5", 1, 512, {"cuda": 7e-5, "torchdeq": 1e-3}, "step")]
    memory = {"memory cuda auto": {"peak_bytes": {"8": 100, "512": 100}}}
    activity = {"unknown map anderson": {"waits": 1}}
    found = {one.what: one for one in targets(states_of(rows, training=memory, activity=activity))}
    assert found["affine 4096 x 64..512: naive / ours"].value == pytest.approx(30)
    assert found["affine 4096 x 64..512: naive / ours"].met is True
    assert found["affine 4096 x 64..512: compiled graphed / ours"].met is False
    assert found["affine 65536 x 128, 256, mixed: fraction of the floor"].value == pytest.approx(0.6)
    assert found["anderson_step 512: microseconds"].value == pytest.approx(7)
    assert found["unknown map: waits of the host"].met is False
    assert found["peak memory, 512 steps / 8"].met is True
    assert found["affine 1, 32 x 1024: naive / ours"].met is None


def test_a_wrong_result_misses_its_target():
    one = row("affine", "orth", 4096, 64, {"picard mixed cuda": 1e-4, "naive": 3e-3})
    one.entries["picard mixed cuda"].seconds = None
    found = {target.what: target for target in targets(states_of([one]))}
    assert found["affine 4096 x 64..512: naive / ours"].value == 0.0


def test_auto_is_held_against_the_better_of_the_two():
    times = {"picard full cuda": 2e-4, "anderson full cuda": 1e-4, "auto full cuda": 1.2e-4}
    one = row("affine", "sym", 4096, 128, times)
    one.entries["picard full cuda"].facts["steps_mean"] = 30.0
    found = {target.what: target for target in targets(states_of([one]))}
    assert found["sym, steps halved: picard / anderson"].value == pytest.approx(2)
    assert found["sym: auto / the better of the two"].value == pytest.approx(1.2)
    assert found["sym: auto / the better of the two"].met is False


def test_the_short_table_has_the_fastest_of_each_backend(capsys):
    times = {"picard full cuda": 2e-4, "auto full cuda": 1e-4, "auto full triton": 3e-4, "naive": 1e-3, "graphed": 5e-4}
    one = row("affine", "orth", 4096, 128, times, floor_seconds=5e-5, bound="products")
    states = states_of([one])
    found = report.make_report(states, dry=False, commit="abc")
    Console(width=180).print(report.short_table(found))
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines() if "4096x128" in line]
    assert [line[3:6] for line in lines] == [["auto", "full", "cuda"], ["auto", "full", "triton"]]
    assert lines[0][6:] == ["100", "us", "50", "%", "products", "10.0", "5.0"]
    assert lines[1][-2:] == ["3.3", "1.7"]


def test_a_map_of_transformer_blocks_contracts():
    from benchmarks.gpu.maps import TransformerProblem

    problem = TransformerProblem(Transformer(2, 7, 32, 4, 2, 20, "float32"), torch.device("cpu"))
    z = problem.solution
    assert torch.isfinite(z).all() and z.norm() > 1
    first = problem.module.double()(z, problem.x[:1].double())
    assert float((first - z).norm() / z.norm()) < 1e-8
