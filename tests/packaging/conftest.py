"""The installed distribution and fresh interpreters to try it in."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import attractor_kernels

PACKAGE = Path(attractor_kernels.__file__).parent


@pytest.fixture
def package() -> Path:
    return PACKAGE


@pytest.fixture
def distribution() -> metadata.Distribution:
    """Only an installed wheel has one; a source tree on the path has none."""
    try:
        found = metadata.distribution("attractor_kernels")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed: the package is used from its source tree")
    if not Path(str(found.locate_file("attractor_kernels"))).samefile(PACKAGE):
        pytest.skip("another installation is shadowed by a source tree")
    return found


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a fresh interpreter, in an empty folder, with the package of this one."""

    def run(code: str, *arguments: str, package_root: Path = PACKAGE.parent) -> subprocess.CompletedProcess[str]:
        prelude = f"import sys; sys.path.insert(0, {str(package_root)!r})\n"
        command = [sys.executable, "-W", "error", "-c", prelude + code, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run
