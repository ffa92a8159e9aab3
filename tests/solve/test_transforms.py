"""torch.compile and torch.func around and inside a solve."""

import pytest
import torch
from torch import nn

import attractor_kernels as ak


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def same_when_compiled(layer, x, **options):
    results = []
    for run in (layer, torch.compile(layer, backend="aot_eager", **options)):
        z = run(x)
        results.append((z, *torch.autograd.grad(z.square().sum(), tuple(layer.parameters()))))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient", [ak.Implicit(), ak.Implicit(rtol=1e-7, max_steps=80, solver=ak.Picard())], ids=str)
def test_a_compiled_cell(gradient):
    layer = ak.nn.FixedPoint(ak.nn.AffineCell(8, 3), rtol=1e-6, gradient=gradient)
    same_when_compiled(layer, torch.randn(5, 3), fullgraph=True)
    assert layer.info.steps.shape == (5,)


# torch's compiler instantiates autograd.Function, which torch deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("gradient", [ak.OneStep(), ak.Phantom()], ids=str)
def test_a_compiled_cell_with_an_approximate_gradient(gradient):
    same_when_compiled(ak.nn.FixedPoint(ak.nn.AffineCell(8, 3), gradient=gradient), torch.randn(5, 3), fullgraph=True)


def test_a_compiled_function_returns_info():
    cell = ak.nn.AffineCell(8, 3).requires_grad_(False)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def solve(x, z0):
        return ak.fixed_point(cell.bind(x), z0, trace=True)

    x = torch.randn(5, 3)
    (z, info), (expected, expected_info) = solve(x, torch.zeros(5, 8)), ak.fixed_point(cell.bind(x), torch.zeros(5, 8))
    torch.testing.assert_close(z, expected)
    assert torch.equal(info.steps, expected_info.steps) and info.trace.shape == (50, 5)
    info.raise_if_failed()


# Where a graph breaks, torch's compiler reads .grad of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("gradient", [ak.Implicit(), ak.Neumann(), ak.Unrolled()], ids=str)
def test_an_unknown_map_breaks_the_graph(gradient):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            nn.init.orthogonal_(self.linear.weight, 0.5)

        def forward(self, z, x):
            return torch.tanh(self.linear(z) + x)

    same_when_compiled(ak.nn.FixedPoint(Net(), rtol=1e-6, gradient=gradient), torch.randn(5, 8))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_map_inside(fullgraph):
    linear = nn.Linear(8, 8)
    nn.init.orthogonal_(linear.weight, 0.5)
    u = torch.randn(5, 8)

    def f(z):
        return torch.tanh(linear(z) + u)

    compiled = torch.compile(f, fullgraph=fullgraph, backend="aot_eager")
    hidden = {"f": compiled}
    results = []
    for g in (f, compiled, lambda z: compiled(z), lambda z: hidden["f"](z)):
        z, _ = ak.fixed_point(g, torch.zeros(5, 8), rtol=1e-6)
        results.append((z, *torch.autograd.grad(z.square().sum(), tuple(linear.parameters()))))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


CELLS = [ak.nn.AffineCell, ak.nn.MLPCell, ak.nn.GatedCell]


@pytest.mark.parametrize("make", CELLS)
def test_gradients_per_sample(make):
    """torch.func.vmap of torch.func.grad over a layer, against one backward a sample."""
    layer = ak.nn.FixedPoint(make(6, 3), rtol=1e-6, solver=ak.Picard(), max_steps=100)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    x = torch.randn(4, 3)

    def loss(parameters, row):
        return torch.func.functional_call(layer, parameters, (row[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for k in range(4):
        expected = torch.autograd.grad(layer(x[k : k + 1]).square().sum(), tuple(layer.parameters()))
        for name, want in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][k], want, rtol=1e-4, atol=1e-5)


def test_jacrev():
    layer = ak.nn.FixedPoint(ak.nn.AffineCell(6, 3), rtol=1e-7, solver=ak.Picard(), max_steps=100).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    found = torch.func.jacrev(layer)(x)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(layer, x), rtol=1e-5, atol=1e-7)
