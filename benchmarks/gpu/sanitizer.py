"""Section `sanitizer`: compute-sanitizer over small cases of every kernel."""

from __future__ import annotations

import re

from .context import Cases, Context, Result

TOOLS = ("memcheck", "racecheck")
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_MOST_LINES = 20


def cases(context: Context) -> Cases:
    """Every backend under every tool."""
    for backend in context.device.kernels:
        for tool in TOOLS:
            yield f"{tool} {backend}", lambda tool=tool, backend=backend: _run(context, tool, backend)


def _run(context: Context, tool: str, backend: str) -> Result:
    arguments = ["--backend", backend, "--device", context.device.where.type]
    return read_report(context.device.sanitize(tool, "benchmarks.gpu.small", arguments, context.environment()))


def read_report(text: str) -> Result:
    """How many errors a run of compute-sanitizer found, and the first of them."""
    found = _SUMMARY.findall(text)
    if not found:
        raise RuntimeError(f"there is no summary: {text[-300:]}")
    errors = sum(int(number) for counts in found for number in counts if number)
    if "all cases ran" not in text:
        raise RuntimeError(f"the cases did not run to their end: {text[-300:]}")
    lines = [line for line in text.splitlines() if line.startswith("=====")][:_MOST_LINES]
    return {"errors": errors, "problems": [f"{errors} errors", *lines] if errors else []}
