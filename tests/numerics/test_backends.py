"""Which backends there are, and that the compiled one is there where it must be."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cells import FUSED, make_cell
from maps import BACKENDS

import attractor_kernels as ak


def installed() -> bool:
    """Whether the package comes from a wheel rather than from a source tree."""
    spec = importlib.util.find_spec("attractor_kernels")
    return not (Path(spec.origin).parent.parent / "setup.py").exists()


def test_an_installed_wheel_has_the_cpu_backend():
    """Everything in this folder runs on the backends found, so a missing one must be noticed here."""
    assert "reference" in BACKENDS
    if installed():
        assert "cpu" in BACKENDS, ak.backends.available()["cpu"]


def test_each_backend_says_why_not():
    for name, availability in ak.backends.available().items():
        assert isinstance(name, str)
        assert availability.reason, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_info_names_the_backend_that_ran(backend):
    _, info = ak.fixed_point(lambda z: z / 2, torch.ones(1, 1), backend=backend)
    assert info.backend == backend
    with ak.use_backend(backend):
        _, info = ak.fixed_point(lambda z: z / 2, torch.ones(1, 1))
        assert info.backend == backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_auto_takes_the_fused_kernels(name, dtype):
    if "cpu" not in BACKENDS:
        return
    layer = ak.nn.FixedPoint(make_cell(name, 6, 3, dtype), rtol=2e-2)
    layer(torch.ones(2, 3, dtype=dtype))
    assert layer.info.backend == "cpu"


def test_importing_starts_no_thread_and_needs_no_environment():
    """A clean interpreter, without this test's settings: import, solve, leave."""
    solve = "ak.fixed_point(lambda z: z / 2 + 1, torch.zeros(1, 1))"
    code = f"import torch, attractor_kernels as ak; print({solve}[1].converged)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "True" in done.stdout
