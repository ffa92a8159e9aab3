"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from attractor_kernels import cli
from attractor_kernels.bench.commands import app
from attractor_kernels.bench.demo import train
from attractor_kernels.bench.demo.memory import Memory

runner = CliRunner()


def invoke(*arguments: object, code: int = 0):
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def test_info():
    found = json.loads(invoke("info", "--json", "--plan", "64x32").stdout)
    assert found["versions"]["torch"]
    assert found["backends"]["reference"]["usable"] is True
    assert "64x32" in found["plans"]
    for name in ("cuda", "triton", "cpu"):
        assert found["backends"][name]["reason"]
    text = invoke("info").stdout
    assert "backends" in text and "reference" in text


BENCH = ("bench", "--quick", "--shape", "2x8", "--cell", "affine", "--dtype", "float32", "--seconds", "0.01")


def test_bench_writes_results_and_pictures(tmp_path):
    options = (*BENCH, "--family", "sym", "--pass", "forward", "--baseline", "naive,floor", "--output", tmp_path)
    result = invoke(*options, "--save-baseline", tmp_path / "ratios.json", "--markdown", tmp_path / "table.md")
    assert "geometric mean" in result.stdout
    (path,) = tmp_path.glob("cpu-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["entries"]["auto full"]["seconds"] > 0
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert "| sym |" in (tmp_path / "table.md").read_text()

    loaded = json.loads(invoke("bench", "--load", path, "--json").stdout)
    assert loaded["rows"] == [row]
    invoke("bench", "--load", path, "--compare", tmp_path / "ratios.json")


def test_bench_fails_where_a_ratio_is_worse(tmp_path):
    invoke(*BENCH, "--family", "orth", "--pass", "forward", "--baseline", "naive", "--output", tmp_path)
    (path,) = tmp_path.glob("cpu-*.json")
    saved = tmp_path / "saved.json"
    invoke("bench", "--load", path, "--save-baseline", saved)
    value = json.loads(saved.read_text())
    for ratios in value["ratios"].values():
        ratios.update({name: ratio * 10 for name, ratio in ratios.items()})
    saved.write_text(json.dumps(value))
    result = invoke("bench", "--load", path, "--compare", saved, code=1)
    assert "2 worse" in result.output


@pytest.mark.parametrize(
    ("option", "value", "names"),
    [
        ("--shape", "12", "1024x256"),
        ("--cell", "lstm", "affine"),
        ("--family", "x", "orth"),
        ("--dtype", "int8", "float64"),
        ("--pass", "sideways", "backward"),
        ("--solver", "newton", "anderson"),
        ("--baseline", "magic", "naive"),
    ],
)
def test_bad_options_name_what_is_known(option, value, names):
    result = runner.invoke(app, ["bench", option, value])
    assert result.exit_code == 2
    assert names in result.output


def test_profile(tmp_path):
    found = json.loads(invoke("profile", "--shape", "8x16", "--seconds", "0.02", "--output", tmp_path, "--json").stdout)
    assert sum(found["steps"].values()) == 8
    assert found["calls"]["ours"]["operations"] >= 1
    assert len(list(tmp_path.glob("profile-*.png"))) == 1


def test_demo(tmp_path, monkeypatch):
    # Its processes of its own are tested in tests/bench/test_demo.py.
    monkeypatch.setattr(train, "measure_in_child", lambda *_: Memory(0, 1 << 20, "not measured"))
    result = invoke("demo", "--epochs", "1", "--state", "16", "--output", tmp_path)
    assert "test accuracy" in result.stdout
    assert "peak memory" in result.stdout
    assert (tmp_path / "demo.png").is_file()


def test_missing_extras_are_named():
    assert "attractor_kernels[cli]" in cli.missing_message("typer")
    assert "attractor_kernels[demo]" in cli.missing_message("matplotlib.figure")
    assert cli.missing_message("something_else") is None
    assert cli.missing_message(None) is None


@pytest.mark.parametrize(("hidden", "extra", "command"), [("typer", "cli", "info"), ("matplotlib", "demo", "bench")])
def test_main_without_the_extras(hidden, extra, command):
    code = f"import sys; sys.modules[{hidden!r}] = None; from attractor_kernels.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"pip install 'attractor_kernels[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
