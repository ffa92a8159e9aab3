"""Which backends there are, and what asking for one does."""

import pytest
import torch

import attractor_kernels as ak
from attractor_kernels.backends import registry, triton


def solve(**options):
    return ak.fixed_point(ak.nn.AffineCell(4, 2).bind(torch.ones(3, 2)), torch.zeros(3, 4), **options)[1]


def test_available():
    found = ak.backends.available()
    assert list(found) == ["cuda", "triton", "cpu", "reference"]
    assert found["reference"].usable
    for name, (usable, reason) in found.items():
        assert isinstance(usable, bool) and reason, name
        assert bool(found[name]) == usable


def test_reference_by_name():
    assert solve(backend="reference").backend == "reference"
    assert ak.fixed_point(torch.cos, torch.zeros(1, 1), backend="reference")[1].backend == "reference"


def test_use_backend_as_context():
    before = solve().backend
    with ak.use_backend("reference"):
        assert solve().backend == "reference"
        with ak.use_backend("auto"):
            assert solve().backend == before
        assert solve().backend == "reference"
    assert solve().backend == before


def test_use_backend_as_setter():
    before = solve().backend
    try:
        ak.use_backend("reference")
        assert solve().backend == "reference"
    finally:
        ak.use_backend("auto")
    assert solve().backend == before


def test_use_backend_restores_after_an_error():
    before = solve().backend
    with pytest.raises(ZeroDivisionError), ak.use_backend("reference"):
        raise ZeroDivisionError
    assert solve().backend == before


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_missing_backends_say_why(name):
    if ak.backends.available()[name]:
        pytest.skip("this backend is here")
    with pytest.raises(ValueError, match=f"backend '{name}' cannot run here: "):
        solve(backend=name)
    with pytest.raises(ValueError, match=f"'{name}' cannot run here: "):
        ak.use_backend(name)


def test_why_triton_is_missing(monkeypatch):
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    assert triton._find() == (False, "triton is not installed")
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: object())
    for version, reason in (("3.5.1", "triton 3.5.1 is older than 3.6"), ("3.7.1", "this torch is built without CUDA")):
        monkeypatch.setattr(triton.metadata, "version", lambda name, version=version: version)
        monkeypatch.setattr(torch.version, "cuda", None)
        assert triton._find() == (False, reason)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton._find() == (False, "torch finds no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert triton._find() == (False, "the device has compute capability 7.5, not 8.0 or later")


def test_order_of_preference(monkeypatch):
    """On a GPU: Triton where it covers the call, else plain torch."""
    monkeypatch.setattr(triton, "_found", (True, "a device"))
    monkeypatch.setattr(registry, "_chosen", {})
    device = torch.device("cuda")

    def chosen(dtype, *sizes, asked="auto"):
        return registry.backend_for("solve_affine", asked, device, dtype, triton.Sizes(*sizes))

    assert chosen(torch.float32, 64) == "triton"
    assert chosen(torch.float32, 64, 0, 6) == "triton"
    assert chosen(torch.float32, 64, 0, 7) == "reference"
    assert chosen(torch.float32, 257) == "reference"
    assert chosen(torch.float64, 64) == "reference"
    assert chosen(torch.float32, 64, asked="reference") == "reference"
    with pytest.raises(ValueError, match="'triton' cannot run solve_affine: the state has 257 entries, not 1 to 256"):
        chosen(torch.float32, 257, asked="triton")


@pytest.mark.parametrize("name", ["solve_affine", "anderson_step"])
def test_the_triton_namespace_is_plain_torch_off_a_gpu(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"attractor_kernels_triton::{name}", "CUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"attractor_kernels_triton::{name}", "CPU")


def test_unknown_names():
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', .*, got 'gpu'"):
        solve(backend="gpu")
    with pytest.raises(ValueError, match="got 'gpu'"):
        ak.use_backend("gpu")
    with pytest.raises(TypeError, match="got None"):
        ak.use_backend(None)


@pytest.mark.skipif(not ak.backends.available()["cpu"], reason="no compiled library")
def test_cpu_by_name():
    assert solve(backend="cpu").backend == "cpu"
    cell = ak.nn.AffineCell(4, 2, device="meta")
    with pytest.raises(ValueError, match="backend 'cpu' cannot run solve_affine: the state is on meta"):
        ak.fixed_point(cell.bind(torch.ones(3, 2, device="meta")), torch.zeros(3, 4, device="meta"), backend="cpu")
