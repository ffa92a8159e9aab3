"""Memory does not grow with max_steps: peak of forward and backward, measured by the operating system."""

import subprocess
import sys

import pytest
from maps import BACKENDS

# Prints by how many KiB the peak resident memory of a process grows between solves of 8 and of 512 steps, none of which
# reaches its tolerance, so that every allowed step is taken. (getrusage's peak will not do: it starts from that of the
# process that started this one.)
MEASURE = """
import pathlib, sys
import torch
import attractor_kernels as ak

what, backend, solver, gradient = sys.argv[1], sys.argv[2], getattr(ak, sys.argv[3])(), getattr(ak, sys.argv[4])()
torch.manual_seed(0)
torch.set_num_threads(1)
rows, size = 256, 128  # one state: 128 KiB; 504 of them would be 63 MiB
make = {"affine": ak.nn.AffineCell, "mlp": ak.nn.MLPCell, "gated": ak.nn.GatedCell, "closure": ak.nn.AffineCell}[what]
cell = make(size, size)
u = torch.randn(rows, size, requires_grad=True)

def step(max_steps):
    steps = dict(rtol=0.0, max_steps=max_steps, min_steps=max_steps)
    options = dict(solver=solver, gradient=gradient, backend=backend, **steps)
    if what == "closure":
        bound = cell.bind(u)
        z, info = ak.fixed_point(lambda z: bound(z), torch.zeros(rows, size), **options)
    else:
        layer = ak.nn.FixedPoint(cell, **options)
        z, info = layer(u), layer.info
    (z.sum() + z.square().sum()).backward()
    assert (info.steps == max_steps).all(), info.steps
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

few = step(8)
print(step(512) - few)
"""


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
# Each way of the kernels; the reference has one loop for all maps, and one more for Broyden.
WAYS = {
    "cpu": [(what, solver) for what in ("closure", "affine") for solver in ("Picard", "Anderson", "Auto")]
    + [("mlp", "Anderson"), ("gated", "Anderson")],
    "reference": [("closure", "Broyden"), ("closure", "Anderson"), ("affine", "Auto")],
}
LIMIT = 16 * 1024  # KiB


def growth(what: str, backend: str, solver: str, gradient: str) -> int:
    arguments = [sys.executable, "-c", MEASURE, what, backend, solver, gradient]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    ("backend", "what", "solver"), [(backend, *way) for backend in BACKENDS for way in WAYS[backend]]
)
def test_peak_memory_is_flat_in_max_steps(backend, what, solver):
    assert growth(what, backend, solver, "Implicit") < LIMIT, "a tape of the iterates would add 63 MiB"


def test_a_tape_is_seen():
    """The measure itself: differentiating through the steps keeps them."""
    assert growth("closure", "reference", "Picard", "Unrolled") > 3 * LIMIT
