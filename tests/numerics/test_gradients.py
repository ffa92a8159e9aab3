"""Each gradient mode against its definition, by dense linear algebra; gradients reach everything f touches."""

import math

import pytest
import torch
from maps import BACKENDS, SOLVERS, family
from torch import nn

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)

ROWS, SIZE = 4, 6


def problem(kind="sym"):
    weight, u = family(kind, ROWS, SIZE)
    return weight.requires_grad_(), u.requires_grad_()


def solve(weight, u, backend, gradient, solver=None, rtol=1e-13, **options):
    return ak.fixed_point(
        lambda z: torch.tanh(z @ weight.mT + u),
        torch.zeros(ROWS, SIZE, dtype=torch.float64),
        solver=solver or ak.Anderson(),
        gradient=gradient,
        rtol=rtol,
        max_steps=500,
        backend=backend,
        **options,
    )


def by_definition(weight, u, z, v, series):
    """(grad weight, grad u) with w = series(J_row^T) v and J = diag(1 - z^2) W."""
    grads = torch.zeros_like(weight), torch.zeros_like(u)
    for row in range(ROWS):
        slope = 1 - z[row] ** 2
        y = slope * (series((slope[:, None] * weight).mT) @ v[row])
        grads[0].add_(torch.outer(y, z[row]))
        grads[1][row] = y
    return grads


EYE = torch.eye(SIZE, dtype=torch.float64)


def damped_series(steps, damping):
    """Reverse mode through steps of z + damping * (f - z), the first start a constant: what reaches f's parameters."""

    def series(j):
        step = (1 - damping) * EYE + damping * j
        return damping * sum(torch.linalg.matrix_power(step, k) for k in range(steps))

    return series


MODES = {
    "implicit": (ak.Implicit(), lambda j: torch.linalg.inv(EYE - j)),
    "onestep": (ak.OneStep(), lambda j: EYE),
    "neumann1": (ak.Neumann(1), lambda j: EYE + j),
    "neumann4": (ak.Neumann(4), lambda j: sum(torch.linalg.matrix_power(j, k) for k in range(5))),
    "phantom2": (ak.Phantom(), damped_series(2, 1.0)),
    "phantom5": (ak.Phantom(5, 0.6), damped_series(5, 0.6)),
    "unrolled": (ak.Unrolled(), lambda j: torch.linalg.inv(EYE - j)),
    "unrolled3": (ak.Unrolled(3), damped_series(3, 1.0)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["sym", "orth"])
def test_mode_by_definition(backend, mode, kind):
    """At a solution to thirteen digits, where every step of every mode is linearised at the same state."""
    options, series = MODES[mode]
    weight, u = problem(kind)
    # Picard for the unrolled modes: their definition is the solver's own steps.
    solver = ak.Picard() if mode.startswith("unrolled") else ak.Anderson()
    z, info = solve(weight, u, backend, options, solver)
    assert info.converged.all()
    v = torch.linspace(-1, 1, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    got = torch.autograd.grad((z * v).sum(), (weight, u))
    with torch.no_grad():
        expected = by_definition(weight, u, z, v, series)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@every_solver
@pytest.mark.parametrize("forward", [ak.Picard(), ak.Anderson(), ak.Auto(), ak.Broyden()], ids=repr)
def test_implicit_with_every_pair_of_solvers(backend, forward, solver):
    weight, u = problem()
    z, info = solve(weight, u, backend, ak.Implicit(solver=solver), forward)
    got = torch.autograd.grad(z.sum(), (weight, u))
    assert info.adjoint.converged.all()
    with torch.no_grad():
        expected = by_definition(weight, u, z, torch.ones_like(z), MODES["implicit"][1])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_implicit_options(backend):
    """Tolerance and steps of the adjoint solve are its own."""
    weight, u = problem()
    z, info = solve(weight, u, backend, ak.Implicit(rtol=1e-2, max_steps=100), ak.Picard())
    z.sum().backward()
    assert info.adjoint.converged.all() and (info.adjoint.residual <= 1e-2).all()
    assert (info.adjoint.steps < info.steps).all()
    z, info = solve(weight, u, backend, ak.Implicit(max_steps=3), ak.Picard())
    with pytest.warns(ak.AdjointWarning, match="MAX_STEPS"):
        z.sum().backward()
    assert (info.adjoint.steps <= 3).all()
    assert (info.adjoint.status == ak.Status.MAX_STEPS).all()
    with pytest.raises(ak.ConvergenceError, match="adjoint"):
        info.raise_if_failed()


def test_neumann_clip(backend):
    """A term longer than clip * |v|, per problem, is scaled down to that length."""
    weight, u = problem()
    with torch.no_grad():
        weight *= 3
        u *= 3
    z0 = torch.zeros(ROWS, SIZE, dtype=torch.float64)
    clip = 0.5
    z, _ = ak.fixed_point(
        lambda z: z @ weight.mT + u,
        z0,
        solver=ak.Picard(),
        gradient=ak.Neumann(1, clip=clip),
        max_steps=1,
        backend=backend,
    )
    v = torch.linspace(-1, 1, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    (got,) = torch.autograd.grad((z * v).sum(), u)
    with torch.no_grad():
        term = v @ weight
        length = clip * v.norm(dim=1, keepdim=True)
        assert (term.norm(dim=1, keepdim=True) > length).any()
        expected = v + term * (length / term.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(got, expected)


@every_solver
def test_cosine_by_hand(backend, solver):
    """z = cos(a z) + b: dz/db = 1 / (1 + a sin(a z)), dz/da = -z sin(a z) dz/db."""
    a, b = torch.tensor(0.8, dtype=torch.float64), torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    a.requires_grad_(), b.requires_grad_()
    z, _ = ak.fixed_point(
        lambda z: torch.cos(a * z) + b,
        torch.ones(2, 1, dtype=torch.float64),
        solver=solver,
        rtol=1e-13,
        backend=backend,
        max_steps=200,
    )
    ga, gb = torch.autograd.grad(z.sum(), (a, b))
    with torch.no_grad():
        slope = 1 / (1 + a * torch.sin(a * z))
        torch.testing.assert_close(gb, slope, rtol=1e-10, atol=0)
        torch.testing.assert_close(ga, (-z * torch.sin(a * z) * slope).sum(), rtol=1e-10, atol=0)


def test_expanding_linear_map_has_the_right_gradient(backend):
    """z = 3 z + b at b = 1: dz/db = -1/2, with an adjoint that Picard cannot solve."""
    b = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    z, _ = ak.fixed_point(
        lambda z: 3 * z + b, torch.zeros(1, 1, dtype=torch.float64), solver=ak.Anderson(), rtol=1e-10, backend=backend
    )
    assert torch.autograd.grad(z.sum(), b)[0].item() == pytest.approx(-0.5, rel=1e-8)


class Tied(nn.Module):
    """A module with a submodule, a parameter used twice, a frozen parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(SIZE, SIZE)
        self.shared = nn.Parameter(torch.full((SIZE,), 0.1))
        self.frozen = nn.Parameter(torch.ones(SIZE), requires_grad=False)
        self.register_buffer("mask", torch.tensor([1.0, 1, 1, 0, 1, 1]))

    def forward(self, z, x):
        return torch.tanh(0.5 * self.inner(z * self.mask) + self.shared + x) * self.frozen + 0.1 * self.shared * z


@pytest.mark.parametrize("options", [ak.Implicit(), ak.OneStep(), ak.Phantom(), ak.Neumann(2), ak.Unrolled()], ids=repr)
def test_gradients_reach_everything_a_module_touches(backend, options):
    module = Tied().double()
    layer = ak.nn.FixedPoint(module, gradient=options, rtol=1e-12, max_steps=200, backend=backend)
    embedding = nn.Parameter(torch.randn(ROWS, SIZE, dtype=torch.float64))
    z = layer(embedding.sin())
    z.pow(2).sum().backward()
    names = [name for name, p in layer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert sorted(name.split(".", 1)[-1] for name in names) == ["inner.bias", "inner.weight", "shared"]
    assert embedding.grad.abs().sum() > 0
    assert module.frozen.grad is None


def test_module_gradient_equals_unrolling_to_convergence(backend):
    module, x = Tied().double(), torch.randn(ROWS, SIZE, dtype=torch.float64)
    layer = ak.nn.FixedPoint(module, rtol=1e-13, max_steps=300, backend=backend)
    z = torch.zeros(ROWS, SIZE, dtype=torch.float64)
    for _ in range(300):
        z = module(z, x)
    parameters = [p for p in module.parameters() if p.requires_grad]
    expected = torch.autograd.grad(z.pow(2).sum(), parameters)
    for a, b in zip(torch.autograd.grad(layer(x).pow(2).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_hooks_of_parameters_fire_once(backend):
    """What data-parallel wrappers hang on: post-accumulate hooks, once per backward."""
    module, fired = Tied().double(), []
    for name, p in module.named_parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    layer = ak.nn.FixedPoint(module, rtol=1e-8, backend=backend, max_steps=100)
    for _ in range(2):
        fired.clear()
        layer(torch.randn(ROWS, SIZE, dtype=torch.float64)).sum().backward()
        assert sorted(fired) == ["inner.bias", "inner.weight", "shared"]


def test_start_gets_no_gradient(backend):
    """The fixed point does not depend on where the solve began; unrolled steps do."""
    weight, u = problem()
    z0 = torch.zeros(ROWS, SIZE, dtype=torch.float64, requires_grad=True)
    f = lambda z: torch.tanh(z @ weight.mT + u)  # noqa: E731
    z, _ = ak.fixed_point(f, z0, rtol=1e-10, backend=backend, max_steps=200)
    (gradient,) = torch.autograd.grad(z.sum(), z0, allow_unused=True)
    assert gradient is None or (gradient == 0).all()
    z, _ = ak.fixed_point(f, z0, solver=ak.Picard(), gradient=ak.Unrolled(), rtol=0.0, max_steps=4, backend=backend)
    (gradient,) = torch.autograd.grad(z.sum(), z0)
    expected = torch.autograd.grad(f(f(f(z0))).sum(), z0)[0]
    torch.testing.assert_close(gradient, expected)


def test_no_graph_without_need(backend):
    """No input that requires a gradient, or no_grad: the result carries no graph."""
    weight, u = problem()
    with torch.no_grad():
        assert not solve(weight, u, backend, ak.Implicit())[0].requires_grad
    assert not solve(weight.detach(), u.detach(), backend, ak.Implicit())[0].requires_grad
    with torch.inference_mode():
        z, info = solve(weight, u, backend, ak.Implicit())
        assert info.converged.all() and not z.requires_grad


def test_backward_twice_through_one_solve(backend):
    weight, u = problem()
    z, _ = solve(weight, u, backend, ak.Implicit())
    first = torch.autograd.grad(z.sum(), (weight, u), retain_graph=True)
    second = torch.autograd.grad(2 * z.sum(), (weight, u))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(2 * a, b, rtol=1e-10, atol=1e-12)


def test_two_solves_in_one_loss(backend):
    """A fixed point that feeds another: each has its own adjoint."""
    a = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    start = torch.ones(1, 1, dtype=torch.float64)
    options = dict(rtol=1e-13, max_steps=200, backend=backend)
    inner, _ = ak.fixed_point(lambda z: torch.cos(a * z), start, **options)
    outer, _ = ak.fixed_point(lambda z: torch.sin(a * z) / 2 + inner, start, **options)
    (got,) = torch.autograd.grad(outer.sum(), a)
    h = 1e-6

    def value(a):
        x = y = 1.0
        for _ in range(200):
            x = math.cos(a * x)
        for _ in range(200):
            y = math.sin(a * y) / 2 + x
        return y

    assert got.item() == pytest.approx((value(0.6 + h) - value(0.6 - h)) / (2 * h), rel=1e-8)


def test_solve_inside_a_solve(backend):
    """A map that is itself a fixed point: gradients flow through both."""
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    start = torch.ones(2, 1, dtype=torch.float64)
    options = dict(rtol=1e-13, max_steps=200, backend=backend)

    def outer_map(y):
        z, _ = ak.fixed_point(lambda z: torch.cos(a * z) * 0.5 + 0.2 * y, start, **options)
        return z

    y, info = ak.fixed_point(outer_map, start, **options)
    assert info.converged.all()
    (got,) = torch.autograd.grad(y.sum() / 2, a)
    # y = cos(a y) / 2 + y / 5 at the end of both, so dy/da = -y sin(a y) / (2 (1 - 1/5) + a sin(a y)).
    y = y[0].detach()
    slope = torch.sin(a.detach() * y)
    assert got.item() == pytest.approx((-y * slope / (1.6 + a.detach() * slope)).item(), rel=1e-8)
