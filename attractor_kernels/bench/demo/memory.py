"""Peak memory of training, each variant in a process of its own.

What counts is the process: how far its resident memory rises above what it was before the first full step, whoever
allocates. The high-water mark is set back at that point where the system allows it (Linux, /proc/self/clear_refs);
elsewhere the rise of the process's maximum is taken, which can only be smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .model import Classifier, Digits, Settings, optimizer_of, train_step

_STEPS = 5


@dataclass(frozen=True)
class Memory:
    """Bytes of resident memory."""

    before: int  # with torch, data, model and optimizer in place
    rise: int  # above it at the peak of training
    how: str


def measure_in_child(variant: str, settings: Settings, weights: Path) -> Memory:
    """Peak memory of a few training steps from the saved weights, in a new process."""
    package_parent = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(p for p in (package_parent, os.environ.get("PYTHONPATH", "")) if p)
    command = [sys.executable, "-m", __name__, variant, json.dumps(asdict(settings)), str(weights)]
    command.append(str(torch.get_num_threads()))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {variant} failed:\n{done.stderr}")
    return Memory(**json.loads(done.stdout))


def measure_here(variant: str, settings: Settings, weights: Path) -> Memory:
    digits = Digits.load()
    model = Classifier(variant, settings)
    saved = torch.load(weights, weights_only=True)
    model.cell.load_state_dict(saved["cell"])
    model.readout.load_state_dict(saved["readout"])
    optimizer = optimizer_of(model, settings)
    # Two rows: threads, autograd and the optimizer's state come into being before the counting starts.
    train_step(model, optimizer, digits.train_x[:2], digits.train_y[:2])
    whole = Settings(**{**asdict(settings), "epochs": 1})
    batches = [batch for batch, _ in zip(digits.batches(whole), range(_STEPS), strict=False)]
    was_reset = _reset_peak()
    before, peak_before = _resident(), _peak()
    for x, y in batches:
        train_step(model, optimizer, x, y)
    base = before if was_reset else peak_before
    how = "peak reset before the first step" if was_reset else "rise of the process's maximum"
    return Memory(before, max(_peak() - base, 0), how)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    # Some sandboxes accept the write and ignore it.
    return _peak() - _resident() < 1 << 20


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _peak() -> int:
    value = _status("VmHWM")
    if value is None:
        unit = 1 if sys.platform == "darwin" else 1024
        value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return value


def _resident() -> int:
    value = _status("VmRSS")
    return _peak() if value is None else value


def main() -> None:
    parser = argparse.ArgumentParser(description="peak memory of one variant, as JSON")
    parser.add_argument("variant")
    parser.add_argument("settings", help="as JSON")
    parser.add_argument("weights", type=Path)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = Settings(**json.loads(arguments.settings))
    print(json.dumps(asdict(measure_here(arguments.variant, settings, arguments.weights))))


if __name__ == "__main__":
    main()
