"""Section `suite`: the tests marked gpu, by pytest. A dry run collects them only."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from .context import ROOT, Cases, Context, Result

PROCESSES = 6  # where pytest-xdist is installed: the first use of a Triton kernel is its compilation
_MOST_FAILURES = 40


def cases(context: Context) -> Cases:
    """One: pytest tells its tests apart."""
    yield "gpu", lambda: (_collect if context.dry else _run)(context)


def _pytest(context: Context, where: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A warning of another library on a machine nobody has seen yet is no failure of ours.
    command = context.python("-m", "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", *arguments)
    done = subprocess.run(
        [*command, where], cwd=ROOT, env=context.environment(), capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr, file=sys.stderr)
    return done


def _collect(context: Context) -> Result:
    done = _pytest(context, "tests/gpu", "-q", "--collect-only")
    collected = sum(int(count) for count in re.findall(r"^tests\S+: (\d+)$", done.stdout, re.MULTILINE))
    if done.returncode or not collected:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-300:]}")
    return {"collected": collected}


def _run(context: Context) -> Result:
    report = context.out / "suite.xml"
    report.unlink(missing_ok=True)
    workers = ["-n", str(PROCESSES)] if importlib.util.find_spec("xdist") else []
    done = _pytest(context, "tests", f"--junitxml={report}", *workers)
    if not report.exists():
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-300:]}")
    return read_report(report)


def read_report(path: Path) -> Result:
    """Counts of a JUnit report, what was skipped and why, and what failed."""
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    failures, skips = [], {}
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
        for case in suite.iter("testcase"):
            where = f"{case.get('classname')}::{case.get('name')}"
            for kind in ("failure", "error"):
                failures += [f"{where}: {(found.get('message') or '')[:200]}" for found in case.findall(kind)]
            for found in case.findall("skipped"):
                reason = (found.get("message") or "")[:200]
                skips[reason] = skips.get(reason, 0) + 1
    if counts["tests"] == 0:
        failures.append("no test was run")
    return {**counts, "skips": skips, "problems": failures[:_MOST_FAILURES]}
