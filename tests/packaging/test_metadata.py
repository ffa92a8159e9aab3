"""What the wheel says of itself, and what is in it."""

from __future__ import annotations

import re

import attractor_kernels as ak


def test_requires_torch_alone(distribution):
    always = [line for line in distribution.requires if "extra ==" not in line]
    assert always == ["torch>=2.11"]


def test_extras(distribution):
    assert set(distribution.metadata.get_all("Provides-Extra")) == {"cli", "demo", "bench", "triton", "test", "dev"}


def test_version_and_licence(distribution):
    assert distribution.version == ak.__version__
    assert distribution.metadata["License-Expression"] == "Apache-2.0"


def test_command(distribution):
    [command] = [entry for entry in distribution.entry_points if entry.group == "console_scripts"]
    assert (command.name, command.value) == ("attractor-kernels", "attractor_kernels.cli:main")


def test_platform_tag(distribution):
    wheel = distribution.read_text("WHEEL")
    assert re.search(r"^Tag: cp3\d+-cp3\d+-(manylinux|linux)_\w+$", wheel, re.MULTILINE), wheel
    assert "Root-Is-Purelib: false" in wheel


def test_holds_the_package_and_nothing_else(distribution):
    files = {str(path) for path in distribution.files}
    assert "attractor_kernels/_cpu.so" in files
    assert "attractor_kernels/py.typed" in files
    assert any(re.fullmatch(r"attractor_kernels/_direct\.[\w-]+\.so", name) for name in files)
    assert any(re.fullmatch(r"attractor_kernels/_facts\.[\w-]+\.so", name) for name in files)
    assert any(name.endswith("licenses/LICENSE") for name in files)
    strange = [
        name
        for name in files
        if not name.startswith(("attractor_kernels/", "attractor_kernels-"))
        and not name.endswith("bin/attractor-kernels")
    ]
    assert not strange
    kinds = {name.rpartition(".")[2] for name in files if name.startswith("attractor_kernels/")}
    assert kinds <= {"py", "pyi", "pyc", "so", "typed"}
