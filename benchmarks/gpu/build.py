"""Section `build`: the wheel, built here or elsewhere, installed beside nothing else; what it finds on this machine.

Imports nothing of the package, which it is about to replace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .context import ROOT, Cases, Context, Result

_PIP = ("-m", "pip", "--disable-pip-version-check", "-q")

_FACTS = """
import json, torch, attractor_kernels
from attractor_kernels.bench import machine
facts = machine.facts_module()
print(json.dumps({
    "package": attractor_kernels.__file__,
    "machine": machine.machine(),
    "versions": machine.versions(),
    "commit": machine.commit(),
    "built": facts and facts.build(),
    "backends": {name: list(found) for name, found in attractor_kernels.backends.available().items()},
}))
"""


def cases(context: Context) -> Cases:
    """Build or take the wheel, install it, ask it what it is."""
    if not context.dry:
        if context.in_place:
            yield "in place", lambda: _build_in_place(context)
        else:
            yield "wheel", lambda: _install(context, context.wheel or _build_wheel(context))
    yield "package", lambda: _package(context)


def _run(context: Context, *command: str, **variables: str) -> str:
    """Output of a command; an error with its end where it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env={**context.environment(), **variables}, capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr, file=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:6])} ended with {done.returncode}: {done.stderr[-300:]}")
    return done.stdout


def architectures() -> str:
    """That of this machine's device, as the build wants it: the tuned code of a Hopper device is that of 9.0a."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}a" if major == 9 else f"{major}.{minor}"


def _variables() -> dict[str, str]:
    return {
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or architectures(),
    }


def _build_in_place(context: Context) -> Result:
    _run(context, *context.python("setup.py", "-q", "build_ext", "--inplace"), **_variables())
    shutil.rmtree(context.site, ignore_errors=True)  # or it would be taken first
    return {"libraries": {path.name: path.stat().st_size for path in ROOT.glob("attractor_kernels/*.so")}}


def _build_wheel(context: Context) -> Path:
    folder = context.out / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    options = ("--no-build-isolation", "--no-deps", "-w", str(folder), ".")
    _run(context, *context.python(*_PIP, "wheel", *options), **_variables())
    (wheel,) = folder.glob("*.whl")
    return wheel


def _install(context: Context, wheel: Path) -> Result:
    if not wheel.is_file():
        raise FileNotFoundError(f"there is no wheel {wheel}")
    shutil.rmtree(context.site, ignore_errors=True)
    target = ("--no-deps", "--no-index", "--no-compile", "--target", str(context.site))
    _run(context, *context.python(*_PIP, "install", *target, str(wheel.resolve())))
    return {"wheel": wheel.name, "bytes": wheel.stat().st_size, "built": context.wheel is None}


def _package(context: Context) -> Result:
    facts: dict[str, Any] = json.loads(_run(context, *context.python("-c", _FACTS)).splitlines()[-1])
    wanted = () if context.dry else ("cuda", "triton")
    unusable = [f"{name}: {facts['backends'][name][1]}" for name in wanted if not facts["backends"][name][0]]
    return {**facts, "problems": unusable}
