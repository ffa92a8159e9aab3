"""The history ring: no slot is read before it is written, the oldest is the one replaced.

A published code rolls its history but reads the first k slots: the zero slots take all the weight, the iterate
collapses to 0 and the residual is exactly 1. The iterates are compared with the oracle's, slot for slot, while memory
that nobody has written yet holds NaN.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from cells import KINDS, make_cell
from maps import BACKENDS, Recorder, assert_same_bits, family
from oracle import anderson

import attractor_kernels as ak


@pytest.fixture
def poisoned_memory():
    """torch.empty is full of NaN (and of the largest integer) instead of whatever was there."""
    deterministic, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("history", [1, 2, 3, 5])
def test_iterates_before_and_after_the_ring_wraps(backend, history, poisoned_memory):
    """Ten steps with histories of 1 to 5: the ring is partly filled, then overwritten, always the oldest first."""
    weight, u = family("orth", 1, 12)
    start = np.full(12, 0.3)
    exact = anderson(lambda x: np.tanh(x @ weight.numpy().T + u[0].numpy()), start, 10, history)
    seen = Recorder(lambda z: torch.tanh(z @ weight.mT + u))
    ak.fixed_point(
        seen,
        torch.from_numpy(start)[None],
        solver=ak.Anderson(history, ridge=0.0),
        rtol=0.0,
        max_steps=11,
        backend=backend,
    )
    for ours, theirs in zip(seen.rows(0), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto(), ak.Broyden()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_uninitialised_memory_is_never_read(backend, solver, dtype):
    weight, u = family("sym", 6, 10, dtype)

    def run():
        w = weight.clone().requires_grad_()
        z, info = ak.fixed_point(
            lambda z: torch.tanh(z @ w.mT + u),
            torch.zeros(6, 10, dtype=dtype),
            solver=solver,
            rtol=2e-2 if dtype.itemsize == 2 else 1e-5,
            max_steps=60,
            keep="best",
            backend=backend,
        )
        return z, info, torch.autograd.grad(z.sum(), w)[0]

    plain = run()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        poisoned = run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(plain[0], poisoned[0])
    assert torch.equal(plain[1].steps, poisoned[1].steps)
    assert_same_bits(plain[1].residual, poisoned[1].residual)
    torch.testing.assert_close(plain[2], poisoned[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto()], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_fused_solves_fill_what_they_return(backend, solver, kind):
    cell = make_cell(kind, 17, 5, torch.float32)
    x = torch.randn(40, 5)

    def run():
        layer = ak.nn.FixedPoint(cell, solver=solver, rtol=1e-4, max_steps=120, backend=backend, trace=True)
        z = layer(x)
        gradients = torch.autograd.grad(z.sum(), tuple(cell.parameters()))
        return z, layer.info.steps, layer.info.residual, layer.info.status, layer.info.trace, *gradients

    plain = run()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        poisoned = run()
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(plain, poisoned, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        torch.testing.assert_close(a.nan_to_num(), b.nan_to_num(), rtol=1e-6, atol=1e-7)


PERTURBED = """
import hashlib
import sys
import torch
import attractor_kernels as ak
sys.path.insert(0, sys.argv[1])
from cells import KINDS, make_cell

torch.manual_seed(0)
for kind in KINDS:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for solver in (ak.Anderson(), ak.Auto()):
            cell = make_cell(kind, 23, 5, dtype)
            x = torch.linspace(-1, 1, 85).view(17, 5).to(dtype)
            layer = ak.nn.FixedPoint(cell, solver=solver, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, backend="cpu")
            z = layer(x)
            gradients = torch.autograd.grad(z.sum(), tuple(cell.parameters()))
            for t in (z, layer.info.steps, layer.info.residual, *gradients):
                print(hashlib.sha256(t.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is glibc's")
@pytest.mark.skipif("cpu" not in BACKENDS, reason="there is no compiled backend here")
def test_compiled_kernels_never_read_fresh_memory():
    """glibc fills every allocation with a pattern: 0x7f (3.4e38 as float32) or nothing."""
    here = os.path.dirname(__file__)
    outputs = set()
    for perturb in ("0", "128"):
        environment = {**os.environ, "MALLOC_PERTURB_": perturb, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", PERTURBED, here], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1
