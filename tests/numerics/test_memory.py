"""Memory does not grow with max_steps: peak of forward and backward, measured by the operating system."""

import subprocess
import sys

import pytest
from maps import BACKENDS

# Peak resident memory of a process that never reaches its tolerance, so that every allowed step is taken.
MEASURE = """
import resource, sys
import torch
import attractor_kernels as ak

what, backend, solver, max_steps = sys.argv[1], sys.argv[2], getattr(ak, sys.argv[3])(), int(sys.argv[4])
torch.manual_seed(0)
rows, size = 512, 256  # one state: 512 KiB; 504 of them would be 252 MiB
q, _ = torch.linalg.qr(torch.randn(size, size))
options = dict(solver=solver, rtol=0.0, max_steps=max_steps, min_steps=max_steps, backend=backend)
u = torch.randn(rows, size, requires_grad=True)

def step():
    if what == "closure":
        weight = (0.9 * q).requires_grad_()
        z, info = ak.fixed_point(lambda z: torch.tanh(z @ weight.mT + u), torch.zeros(rows, size), **options)
    else:
        cell = ak.nn.AffineCell(size, size)
        with torch.no_grad():
            cell.weight.copy_(0.9 * q)
        layer = ak.nn.FixedPoint(cell, **options)
        z, info = layer(u), layer.info
    z.sum().backward()
    assert (info.steps == max_steps).all(), info.steps

step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(*arguments) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts KiB on Linux only")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["closure", "cell"])
@pytest.mark.parametrize("solver", ["Anderson", "Picard"])
def test_peak_memory_is_flat_in_max_steps(backend, what, solver):
    few, many = (peak_kib(what, backend, solver, steps) for steps in (8, 512))
    # A tape of the iterates would add 250 MiB.
    assert many - few < 16 * 1024, f"{few} KiB at 8 steps, {many} KiB at 512"
