"""Where and with what a number was measured."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

_OPTIONAL = ("torchdeq", "jax", "jaxlib", "numpy", "scikit-learn", "matplotlib")
# Those that decide which kernels run.
_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_tile",
    "asimd",
    "sve",
)


def facts_module() -> Any | None:
    """The compiled module of kernel facts, or None where the compiled part is missing."""
    try:
        return importlib.import_module("attractor_kernels._facts")
    except ImportError:
        return None


def machine() -> dict[str, Any]:
    """Processor, system and threads; where torch has a CUDA device, "gpu" too."""
    cpu = _cpu_info()
    facts = facts_module()
    gpu = {"gpu": _gpu_info()} if torch.cuda.is_available() else {}
    return {
        "cpu": cpu["model"],
        "flags": cpu["flags"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "instruction_set": facts.instruction_set() if facts is not None else None,
        **gpu,
    }


def versions() -> dict[str, str]:
    """The package, torch, Python, and those of the optional packages that are installed."""
    found = {"attractor_kernels": _version("attractor-kernels") or "source tree"}
    found |= {"python": platform.python_version(), "torch": torch.__version__}
    found |= {name: version for name in _OPTIONAL if (version := _version(name)) is not None}
    return found


def commit() -> str:
    """Commit of the source tree that is imported or, for an installed package, of the current directory; "unknown"
    where there is none. A tree with changes says so."""
    for folder in (Path(__file__).resolve().parents[2], Path.cwd()):
        if not (folder / "csrc").is_dir():
            continue
        try:
            head = _git(folder, "rev-parse", "--short=12", "HEAD")
            changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "csrc", "attractor_kernels")
        except (OSError, subprocess.CalledProcessError):
            continue
        return f"{head} with changes" if changed else head
    return "unknown"


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def slug(where: dict[str, Any]) -> str:
    """A machine in a file's name.

    >>> slug({"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "instruction_set": "avx512", "threads": 2})
    'intel-xeon-avx512-2-threads'
    """
    words = [str(where["cpu"]), str(where["instruction_set"] or ""), f"{where['threads']} threads"]
    text = re.sub(r"\((?:r|tm)\)|\bcpu\b|@.*?ghz|processor", " ", " ".join(words).lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _gpu_info() -> dict[str, Any]:
    """The current CUDA device, its driver and clocks, and what code for it is made with."""
    properties = torch.cuda.get_device_properties()
    query = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(query)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        told = dict(zip(query, (part.strip() for part in done.stdout.splitlines()[0].split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        told = {"nvidia-smi": f"failed: {error}"}
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        **told,
    }


def _cpu_info() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    flags: list[str] = []
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"model": model, "flags": flags}
    if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        model = match.group(1).strip()
    if match := re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE):
        present = set(match.group(1).split())
        flags = [flag for flag in _FLAGS if flag in present]
    return {"model": model, "flags": flags}
