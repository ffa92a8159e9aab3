"""The package alone: from any folder, with torch and nothing else, and with parts missing."""

from __future__ import annotations

import shutil
from importlib import metadata

import pytest

# Everything the extras bring, under the names it is imported by.
OPTIONAL = "typer rich matplotlib sklearn scipy psutil torchdeq pytest hypothesis pytest_benchmark jax triton".split()

# None stands for "there is no such module".
WITHOUT_OPTIONAL = f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"


def test_from_an_empty_folder(run_python, package):
    result = run_python("import torch, attractor_kernels as ak; print(ak.__file__)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(package / "__init__.py")


def test_before_torch(run_python):
    result = run_python("import attractor_kernels as ak; print(ak.backends.available()['cpu'].usable)")
    assert (result.returncode, result.stdout.strip()) == (0, "True"), result.stderr


def test_import_is_light(run_python):
    # torch's compiler takes longer to import than torch itself; only who compiles should pay for it. Triton waits for
    # the first solve on a GPU.
    code = (
        "import attractor_kernels as ak; ak.backends.available(); print({'torch._dynamo', 'triton'} & {*sys.modules})"
    )
    result = run_python(code)
    assert (result.returncode, result.stdout.strip()) == (0, "set()"), result.stderr


def test_with_torch_alone(run_python):
    code = """
import torch, attractor_kernels as ak
layer = ak.nn.FixedPoint(ak.nn.AffineCell(8, 3))
layer(torch.randn(4, 3)).sum().backward()
assert layer.info.converged.all()
"""
    result = run_python(WITHOUT_OPTIONAL + code)
    assert result.returncode == 0, result.stderr


def test_command_without_its_extra_says_what_to_install(run_python):
    code = "sys.argv = ['attractor-kernels', 'info']\nfrom attractor_kernels.cli import main\nmain()"
    result = run_python(WITHOUT_OPTIONAL + code)
    assert result.returncode != 0
    assert "pip install" in result.stderr
    assert "attractor_kernels[cli]" in result.stderr
    assert "Traceback" not in result.stderr


def test_command_is_installed(run_python, distribution):
    [command] = distribution.entry_points.select(group="console_scripts")
    assert isinstance(command, metadata.EntryPoint)
    assert callable(command.load())


@pytest.mark.parametrize("present", [False, True], ids=["missing", "damaged"])
def test_without_a_working_library_the_reason_is_told(run_python, package, tmp_path, present):
    copy = tmp_path / "copy" / "attractor_kernels"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("_cpu.so", "__pycache__"))
    if present:
        (copy / "_cpu.so").write_bytes(b"not a library")
    code = """
import torch, attractor_kernels as ak
usable, reason = ak.backends.available()["cpu"]
print(usable, reason)
z, info = ak.fixed_point(ak.nn.AffineCell(4, 2).bind(torch.ones(3, 2)), torch.zeros(3, 4))
print(info.backend)
try:
    ak.fixed_point(lambda z: 0.5 * z, torch.zeros(3, 4), backend="cpu")
except ValueError as error:
    print(error)
"""
    result = run_python(code, package_root=copy.parent)
    assert result.returncode == 0, result.stderr
    told, backend, error = result.stdout.strip().splitlines()
    assert told.startswith("False")
    assert "_cpu.so" in told
    assert backend == "reference"
    assert "_cpu.so" in error
