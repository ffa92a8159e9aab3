"""The problems that are timed, and the answers they are held against."""

from __future__ import annotations

import pytest
import torch

from attractor_kernels.bench.cases import CELLS, FAMILIES, Case, Problem, family_matrix, parse_shape


def test_families_have_their_spectra():
    orth = family_matrix("orth", 32)
    torch.testing.assert_close(orth @ orth.T, 0.81 * torch.eye(32, dtype=torch.float64))
    sym = family_matrix("sym", 32)
    values = torch.linalg.eigvalsh(sym)
    assert float(values[0]) == pytest.approx(-0.27)
    assert float(values[-1]) == pytest.approx(0.9)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cell_is_the_map(cell, family):
    problem = Problem(Case(cell, family, 5, 16, "float64"))
    z = torch.randn(5, 16, dtype=torch.float64)
    bound = problem.cell[0].bind_injection(problem.u)
    torch.testing.assert_close(bound(z), problem.map.step(problem.u, problem.parameters)(z))


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference_solves_the_equation(cell):
    problem = Problem(Case(cell, "sym", 3, 8, "float64"))
    step = problem.map.step(problem.u, problem.parameters)
    z = problem.solution
    assert float((step(z) - z).norm() / z.norm()) < 1e-7


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference_gradients_are_those_of_a_long_unrolled_loop(cell):
    problem = Problem(Case(cell, "orth", 3, 8, "float64"))
    leaves = problem.leaves()
    step = problem.map.step(leaves["u"], {name: leaf for name, leaf in leaves.items() if name != "u"})
    z = problem.z0
    for _ in range(400):
        z = step(z)
    gradients = torch.autograd.grad(z, list(leaves.values()), problem.cotangent)
    for name, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(problem.gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_the_same_case_is_the_same_problem():
    one, other = (Problem(Case("affine", "orth", 4, 8)) for _ in range(2))
    assert torch.equal(one.u, other.u) and torch.equal(one.parameters["weight"], other.parameters["weight"])


@pytest.mark.parametrize("text", ["", "64", "x", "0x4", "4x0", "4x4x4", "-1x3", "axb"])
def test_bad_shapes_are_refused(text):
    with pytest.raises(ValueError, match="1024x256"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("field", "value"), [("cell", "lstm"), ("family", "x"), ("dtype", "int8"), ("batch", 0), ("dim", 0)]
)
def test_bad_cases_are_refused(field, value):
    good = dict(cell="affine", family="orth", batch=1, dim=4, dtype="float32")
    with pytest.raises(ValueError, match=field):
        Case(**{**good, field: value})
