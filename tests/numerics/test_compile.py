"""torch.compile without a graph break, and torch.library's own checks of every op."""

import pytest
import torch
from cells import KINDS, make_cell
from maps import BACKENDS
from torch import nn

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Model(nn.Module):
    def __init__(self, cell, backend, **options):
        super().__init__()
        self.embed = nn.Linear(6, 5)
        self.layer = ak.nn.FixedPoint(cell, rtol=1e-6, max_steps=80, backend=backend, **options)
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        return self.head(self.layer(torch.relu(self.embed(x))))


@pytest.mark.parametrize(("kind", "precision"), [*((kind, "full") for kind in KINDS), ("affine-tanh", "mixed")])
def test_fullgraph_model(backend, kind, precision):
    """Values and gradients of the compiled model are those of the eager one."""
    torch.compiler.reset()
    model = Model(make_cell(kind, 9, 5, torch.float32), backend, precision=precision)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(11, 6)
    results = []
    for run in (model, compiled):
        inputs = x.clone().requires_grad_()
        y = run(inputs)
        results.append((y, *torch.autograd.grad(y.pow(2).sum(), (inputs, *model.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.needs_compiler
@pytest.mark.filterwarnings("ignore:`?torch.jit:DeprecationWarning")
def test_fullgraph_inductor(backend):
    """Through inductor to compiled code, once, at two batch sizes without a break."""
    torch.compiler.reset()
    model = Model(make_cell("affine-tanh", 9, 5, torch.float32), backend)
    compiled = torch.compile(model, fullgraph=True)
    for rows in (4, 7):
        x = torch.randn(rows, 6)
        y = compiled(x)
        y.sum().backward()
        torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-6)
