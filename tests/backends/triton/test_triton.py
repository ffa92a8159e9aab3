"""Runs the tests of the Triton kernels, each folder in a process of its own: what Triton does is settled when it is
imported, by environment variables.

`interpreted` runs the kernels in Triton's interpreter against the reference; `ahead_of_time` compiles them for GPUs.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
ENVIRONMENTS = {"interpreted": {"TRITON_INTERPRET": "1"}, "ahead_of_time": {}}


def run(folder, marked, config, cache, triton=None):
    """triton: the version it must be; None: the one that is asked for here, if any."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= ENVIRONMENTS[folder]
    environment |= {"ATTRACTOR_KERNELS_TRITON_TESTS": folder, "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-c", str(config.inipath), "-q", "-p", "no:cacheprovider", "-m", marked]
    if version := triton or config.getoption("--triton"):
        command += ["--triton", version]
    return subprocess.run(
        [*command, str(Path(__file__).parent / folder)], env=environment, capture_output=True, text=True
    )


def check(result):
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@pytest.mark.parametrize("folder", ENVIRONMENTS)
def test_in_a_process_of_its_own(folder, request, tmp_path):
    check(run(folder, "not thorough", request.config, tmp_path))


def test_another_version_than_asked_for_is_an_error(request, tmp_path):
    result = run("ahead_of_time", "not thorough", request.config, tmp_path, triton="0.1")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--triton 0.1: " in result.stderr


@pytest.mark.thorough
def test_every_plan_compiles(request, tmp_path):
    check(run("ahead_of_time", "thorough", request.config, tmp_path))
