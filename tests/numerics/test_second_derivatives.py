"""gradcheck and gradgradcheck in float64: right to every order that a mode promises, or a clear error."""

import pytest
import torch
from cells import ALL, KINDS, make_cell
from maps import BACKENDS, SOLVERS
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)

MATRIX = torch.tensor([[1.1, 0.4], [0.3, 0.8]], dtype=torch.float64)


def tanh_solve(matrix, shift, backend, solver=None, gradient=None, **options):
    """NUMERICS case 6 near its stable solution: tanh(A y + b) + y / 2."""
    start = torch.tensor([[1.9, 1.7], [-1.9, -1.6]], dtype=torch.float64)
    options = {"rtol": 1e-14, "max_steps": 400, **options}
    z, _info = ak.fixed_point(
        lambda y: torch.tanh(y @ matrix.mT + shift) + y / 2,
        start,
        solver=solver or ak.Anderson(2),
        gradient=gradient or ak.Implicit(),
        backend=backend,
        **options,
    )
    return z


def inputs():
    return MATRIX.clone().requires_grad_(), torch.full((2, 2), 0.1, dtype=torch.float64).requires_grad_()


@every_solver
def test_implicit_closure(backend, solver):
    assert gradcheck(lambda m, s: tanh_solve(m, s, backend, solver), inputs(), fast_mode=backend == "reference")
    assert gradgradcheck(lambda m, s: tanh_solve(m, s, backend, solver), inputs(), fast_mode=backend == "reference")


def test_higher_derivatives_of_a_scalar(backend):
    """z = cos(z) + b in closed form: first and second derivative; the third is right or clearly refused."""
    b = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    z, _ = ak.fixed_point(
        lambda z: torch.cos(z) + b, torch.ones(1, 1, dtype=torch.float64), rtol=1e-14, max_steps=200, backend=backend
    )
    first = torch.autograd.grad(z.sum(), b, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), b, retain_graph=True)[0]
    s, c = torch.sin(z.detach()), torch.cos(z.detach())
    torch.testing.assert_close(first.detach(), 1 / (1 + s), rtol=1e-11, atol=0)
    torch.testing.assert_close(second, -c / (1 + s) ** 3, rtol=1e-10, atol=0)

    def third():
        second = torch.autograd.grad(first.sum(), b, create_graph=True)[0]
        return torch.autograd.grad(second.sum(), b)[0]

    expected = s / (1 + s) ** 4 + 3 * c**2 / (1 + s) ** 5
    assert_right_or_refused(third, lambda got: torch.testing.assert_close(got, expected, rtol=1e-9, atol=0))


def assert_right_or_refused(derivative, check):
    """Never silently wrong: a derivative of an order that is not supported raises an error that says so."""
    try:
        got = derivative()
    except RuntimeError as error:
        message = str(error)
    else:
        check(got)
        return
    assert "derivative" in message and ("Unrolled" in message or "Implicit" in message)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)
        with torch.no_grad():
            self.lin.weight.mul_(0.8)

    def forward(self, z, x):
        return torch.tanh(self.lin(z) + x)


def test_implicit_module(backend):
    """In the input by finite differences; in the parameters against a long unrolling."""
    net = Net().double()
    layer = ak.nn.FixedPoint(net, rtol=1e-14, max_steps=300, backend=backend)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(layer, (x,))
    assert gradgradcheck(layer, (x,))

    def unrolled(x):
        z = torch.zeros_like(x)
        for _ in range(150):
            z = net(z, x)
        return z

    results = []
    for solve in (layer, unrolled):
        g = torch.autograd.grad(solve(x).pow(2).sum(), (x, *net.parameters()), create_graph=True)
        results.append(torch.autograd.grad(sum(t.pow(2).sum() for t in g), (x, *net.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_parameters_swapped_after_the_solve(backend):
    """functional_call puts other parameters into a module for one call: a second derivative, which has to call the
    module again, is right or refused, never that of the module's own parameters."""
    net = Net().double()
    layer = ak.nn.FixedPoint(net, rtol=1e-14, max_steps=300, backend=backend)
    x = torch.randn(2, 3, dtype=torch.float64)
    swapped = {name: (0.5 * p).detach().requires_grad_() for name, p in layer.named_parameters()}
    z = torch.func.functional_call(layer, swapped, (x,))
    values = tuple(swapped.values())
    g = torch.autograd.grad(z.pow(2).sum(), values, retain_graph=True)

    def unrolled():
        z = torch.zeros_like(x)
        for _ in range(150):
            z = torch.func.functional_call(net, {k.split(".", 1)[1]: p for k, p in swapped.items()}, (z, x))
        return torch.autograd.grad(z.pow(2).sum(), values, create_graph=True)

    exact = unrolled()
    for a, b in zip(g, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)

    def penalty(g):
        return torch.autograd.grad(sum(t.pow(2).sum() for t in g), values)

    def check(got):
        for a, b in zip(got, penalty(exact), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)

    assert_right_or_refused(lambda: penalty(torch.autograd.grad(z.pow(2).sum(), values, create_graph=True)), check)


class Scaled(torch.autograd.Function):
    """a * z where a is hidden from torch's function overrides."""

    @staticmethod
    def forward(ctx, z, a):
        ctx.save_for_backward(z, a)
        return a * z

    @staticmethod
    def backward(ctx, v):
        z, a = ctx.saved_tensors
        return a * v, (v * z).sum()


HIDDEN = {
    "function": lambda z, a: Scaled.apply(z, a),
    "dict": lambda z, a: {"a": a}["a"] * z,
    "checkpoint": lambda z, a: checkpoint(lambda z: torch.sin(a * z), z, use_reentrant=False),
    "nested": lambda z, a: ak.fixed_point(lambda y: 0.3 * torch.sin(a * y) + z, torch.zeros_like(z), rtol=1e-14)[0],
    "foreach": lambda z, a: torch._foreach_mul([z], [a])[0],
    "vmap": lambda z, a: torch.func.vmap(lambda row: a * row)(z),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_parameters_reached_in_unusual_ways(backend, name):
    """First derivatives are right however f reaches a tensor; second ones right or refused."""
    a = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.2], [0.9]], dtype=torch.float64, requires_grad=True)
    f = lambda z: torch.cos(HIDDEN[name](z, a)) / 2 + b  # noqa: E731

    def solve():
        return ak.fixed_point(f, torch.zeros(2, 1, dtype=torch.float64), rtol=1e-14, max_steps=200, backend=backend)[0]

    def unrolled():
        z = torch.zeros(2, 1, dtype=torch.float64)
        for _ in range(60):
            z = f(z)
        return z

    for x, y in zip(
        torch.autograd.grad(solve().sum(), (a, b)), torch.autograd.grad(unrolled().sum(), (a, b)), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)

    def second(z):
        g = torch.autograd.grad(z.pow(2).sum(), (a, b), create_graph=True)
        return torch.autograd.grad(g[0] ** 2 + g[1].pow(2).sum(), (a, b))

    exact = second(unrolled()) if name not in ("nested",) else numeric_second(solve, a, b)

    def check(got):
        for x, y in zip(got, exact, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)

    assert_right_or_refused(lambda: second(solve()), check)


def numeric_second(solve, a, b, h=1e-5):
    """d/d(a, b) of |first gradient|^2 by central differences of first gradients."""

    def penalty():
        g = torch.autograd.grad(solve().pow(2).sum(), (a, b))
        return g[0] ** 2 + g[1].pow(2).sum()

    results = []
    for t in (a, b):
        slope = torch.zeros_like(t)
        for k in range(t.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    t.view(-1)[k] += sign * h
                values.append(penalty())
                with torch.no_grad():
                    t.view(-1)[k] -= sign * h
            slope.view(-1)[k] = (values[0] - values[1]) / (2 * h)
        results.append(slope)
    return results


@pytest.mark.parametrize("solver", [ak.Picard(), ak.Auto(), ak.Anderson()], ids=["picard", "auto", "anderson"])
def test_unrolled_closure(backend, solver):
    """The derivative of the steps themselves, few or many: Anderson's weights are functions of the iterates too."""
    for steps in (2, 5):

        def run(matrix, shift, steps=steps):
            return tanh_solve(matrix, shift, backend, solver, ak.Unrolled(), rtol=0.0, max_steps=steps)

        assert gradcheck(run, inputs(), rtol=1e-3, atol=1e-4)
        assert gradgradcheck(run, inputs(), rtol=1e-2, atol=1e-4)


TRUNCATED = {"onestep": ak.OneStep(), "phantom": ak.Phantom(), "neumann": ak.Neumann(2)}


@pytest.mark.parametrize("mode", TRUNCATED)
def test_truncated_modes_are_right_or_refuse(backend, mode):
    """Their first derivative is an approximation on purpose; differentiating it is exact or an error, never silent.

    "Exact" is the derivative of the gradient formula as a function of the inputs, the fixed point included.
    """
    matrix, shift = inputs()

    def gradient_at(matrix, shift):
        z = tanh_solve(matrix, shift, backend, gradient=TRUNCATED[mode])
        return torch.autograd.grad(z.sum(), (matrix, shift), create_graph=True)

    def value(matrix, shift):
        matrix, shift = matrix.detach().requires_grad_(), shift.detach().requires_grad_()
        z = tanh_solve(matrix, shift, backend, gradient=TRUNCATED[mode])
        return sum(g.sum() for g in torch.autograd.grad(z.sum(), (matrix, shift))).item()

    def second():
        gm, gs = gradient_at(matrix, shift)
        assert gm.requires_grad or gs.requires_grad, "the gradient is silently cut off from its inputs"
        return torch.autograd.grad(gm.sum() + gs.sum(), shift)[0]

    def check(got, h=1e-5):
        for index in [(0, 0), (1, 1)]:
            e = torch.zeros_like(shift)
            e[index] = h
            numeric = (value(matrix, shift + e) - value(matrix, shift - e)) / (2 * h)
            assert got[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-7)

    assert_right_or_refused(second, check)


@pytest.mark.parametrize("mode", TRUNCATED)
@pytest.mark.parametrize("name", KINDS)
def test_truncated_modes_of_cells_refuse(backend, name, mode):
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    layer = ak.nn.FixedPoint(make_cell(name, 4, 2, torch.float64), gradient=TRUNCATED[mode], backend=backend)
    z = layer(x)
    with pytest.raises(RuntimeError, match=r"derivative.*(Unrolled|Implicit)"):
        torch.autograd.grad(z.sum(), x, create_graph=True)
    torch.autograd.grad(z.sum(), x)  # the first is there


@pytest.mark.parametrize("name", ALL)
def test_implicit_cell(backend, name):
    """Every cell, every activation: parameters, input and injection, first and second order."""
    cell = make_cell(name, 3, 2, torch.float64)
    # Plain steps are the cheap ones in the reference.
    solver = ak.Picard() if backend == "reference" else ak.Auto()
    layer = ak.nn.FixedPoint(cell, solver=solver, rtol=1e-13, max_steps=400, backend=backend)
    names, values = zip(*((n, p.detach().clone().requires_grad_()) for n, p in layer.named_parameters()), strict=True)
    x = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    # gradcheck steps by 1e-6: no unit of these inputs is that close to a kink.
    assert gradcheck(run, (x, *values), atol=1e-6, fast_mode=True)
    assert gradgradcheck(run, (x, *values), atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("kind", ["affine-tanh", "mlp-tanh", "mlp-layer", "gated"])
def test_cells_jacobian_penalty(backend, kind):
    """The use second derivatives are for: the gradient of a gradient's norm, against unrolling."""
    cell = make_cell(kind, 5, 3, torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    layer = ak.nn.FixedPoint(cell, rtol=1e-14, max_steps=400, backend=backend)
    parameters = list(cell.parameters())

    def penalty(solve):
        inputs = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(solve(inputs).pow(2).sum(), inputs, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), parameters)

    def unrolled(inputs):
        z = torch.zeros(4, 5, dtype=torch.float64)
        for _ in range(150):
            z = cell(z, inputs)
        return z

    for a, b in zip(penalty(layer), penalty(unrolled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
