"""Which backends there are, and what asking for one does."""

import pytest
import torch

import attractor_kernels as ak


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
