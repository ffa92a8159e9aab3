"""fixed_point and its gradients through the Triton operators, forward and adjoint, as on a CUDA device."""

import copy

import pytest
import torch

import attractor_kernels as ak
from attractor_kernels.backends import plan, registry, triton, use_plan
from attractor_kernels.backends.triton import launch, step_launch
from attractor_kernels.ops._declare import TRITON_NAMESPACE

calls = []


def implementation(name):
    def kernel(*arguments):
        calls.append(name)
        return launch.solve_rows(name, arguments, plan.H100)

    return kernel


def step(*arguments):
    calls.append("anderson_step")
    step_launch.anderson_step(*arguments)


# The interpreter takes CPU tensors where the compiled kernels take CUDA tensors.
_library = torch.library.Library(TRITON_NAMESPACE, "FRAGMENT")
for _name in launch.PROBLEMS:
    _library.impl(_name, implementation(_name), "CPU")
_library.impl("anderson_step", step, "CPU")


@pytest.fixture(autouse=True)
def _triton_on_the_cpu(monkeypatch):
    monkeypatch.setattr(triton, "availability", lambda: (True, "the interpreter"))
    monkeypatch.setattr(triton, "obstacle", lambda op, device, dtype, sizes: triton.uncovered(op, dtype, sizes))
    monkeypatch.setattr(registry, "_chosen", {})
    calls.clear()


CELLS = [
    (lambda: ak.nn.AffineCell(5, 3, activation="gelu"), "solve_affine", "solve_affine"),
    (lambda: ak.nn.MLPCell(5, 3, hidden_dim=7, activation="swiglu"), "solve_mlp", "solve_mlp_adjoint"),
    (lambda: ak.nn.GatedCell(5, 3), "solve_gated", "solve_gated_adjoint"),
]


@pytest.mark.parametrize(("make_cell", "forward", "adjoint"), CELLS, ids=[forward for _, forward, _ in CELLS])
def test_values_and_gradients(make_cell, forward, adjoint):
    cell = make_cell()
    x, v = torch.randn(3, 3), torch.randn(3, 5)
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        copied = copy.deepcopy(cell).to(dtype)
        z, info = ak.fixed_point(copied.bind(x.to(dtype)), torch.zeros(3, 5, dtype=dtype), rtol=1e-6, backend=backend)
        assert info.backend == backend
        z.backward(v.to(dtype))
        results.append([z.detach(), *(p.grad for p in copied.parameters())])
    assert calls == [forward, adjoint]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_gradients_in_mixed_precision():
    """Products of changes, forward and in the adjoint, which is the same operator."""
    cell = ak.nn.AffineCell(20, 3, activation="tanh", leak=0.1)
    x, v = torch.randn(3, 3), torch.randn(3, 20)
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        copied = copy.deepcopy(cell).to(dtype)
        options = dict(rtol=1e-6, precision="mixed", backend=backend)
        with use_plan("solve_affine", mixed=True):
            z, info = ak.fixed_point(copied.bind(x.to(dtype)), torch.zeros(3, 20, dtype=dtype), **options)
            z.backward(v.to(dtype))
        assert info.converged.all() and info.adjoint.converged.all()
        results.append([z.detach(), *(p.grad for p in copied.parameters())])
    assert calls == ["solve_affine", "solve_affine"]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_unknown_map():
    w = torch.linalg.qr(torch.randn(4, 4))[0] * 0.7
    z, info = ak.fixed_point(lambda z: torch.tanh(z @ w + 1), torch.zeros(3, 4), rtol=1e-5, backend="triton")
    assert info.backend == "triton" and info.converged.all()
    assert set(calls) == {"anderson_step"}
    torch.testing.assert_close(z, torch.tanh(z @ w + 1), rtol=0, atol=1e-4)


def test_what_no_kernel_covers_is_refused_by_name():
    wide = ak.nn.AffineCell(257, 2)
    with pytest.raises(ValueError, match="'triton' cannot run solve_affine: the state has 257 entries, not 1 to 256"):
        backend_of(wide, ak.Picard())
    with pytest.raises(ValueError, match="the history is 7, not at most 6"):
        backend_of(ak.nn.AffineCell(9, 2), ak.Anderson(history=7))
    assert backend_of(ak.nn.AffineCell(3, 2), ak.Anderson(history=7)) == "triton"  # no more than 3 are used
    with pytest.raises(ValueError, match=r"the state is torch\.float64"):
        backend_of(ak.nn.AffineCell(9, 2, dtype=torch.float64), ak.Picard())
    with pytest.raises(ValueError, match="the hidden layer has 513 units, not 1 to 512"):
        backend_of(ak.nn.MLPCell(4, 2, hidden_dim=513), ak.Picard())


def backend_of(cell, solver):
    sizes = triton.Sizes(cell.state_dim, getattr(cell, "hidden_dim", 0), getattr(solver, "history", 0))
    name = "solve_mlp" if isinstance(cell, ak.nn.MLPCell) else "solve_affine"
    return registry.backend_for(name, "triton", torch.device("cpu"), cell.input_weight.dtype, sizes)
