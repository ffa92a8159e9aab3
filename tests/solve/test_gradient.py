"""Gradient modes: the same value from each, the right derivative from those that are exact, refusals in words."""

import gc
import weakref

import pytest
import torch
from torch import nn

import attractor_kernels as ak

TIGHT = {"rtol": 1e-13, "max_steps": 200}
MODES = [
    ak.Implicit(),
    ak.OneStep(),
    ak.Phantom(),
    ak.Neumann(),
    ak.Neumann(terms=3, clip=0.5),
    ak.Unrolled(),
    ak.Unrolled(last=2),
]
SOLVERS = [ak.Picard(), ak.Anderson(), ak.Auto(), ak.Broyden()]


@pytest.fixture
def leaves():
    a = (0.3 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()
    return a, torch.randn(2, 3, dtype=torch.float64).requires_grad_()


def solve(a, b, **options):
    z0 = torch.zeros(b.shape, dtype=b.dtype)
    return ak.fixed_point(lambda z: torch.tanh(z @ a.mT + b), z0, **{**TIGHT, **options})


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_no_mode_changes_the_value(leaves, mode, solver):
    with torch.no_grad():
        expected, expected_info = solve(*leaves, solver=solver)
    z, info = solve(*leaves, solver=solver, gradient=mode)
    if isinstance(mode, ak.Unrolled):  # runs the plain torch loop
        torch.testing.assert_close(z, expected, rtol=1e-11, atol=0)
    else:
        assert torch.equal(z, expected) and torch.equal(info.steps, expected_info.steps)
    assert z.requires_grad and not info.residual.requires_grad
    for gradient in torch.autograd.grad(z.sum(), leaves):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_implicit(leaves, solver):
    assert torch.autograd.gradcheck(lambda a, b: solve(a, b, solver=solver)[0], leaves)
    assert torch.autograd.gradgradcheck(lambda a, b: solve(a, b, solver=solver)[0], leaves, fast_mode=True)


def test_second_derivative_where_one_captured_tensor_depends_on_another(leaves):
    assert torch.autograd.gradgradcheck(lambda a, b: solve(a, b * a.sum())[0], leaves)


def test_second_derivative_of_a_module_with_a_shared_weight():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    net[2].weight = net[0].weight
    names, values = zip(*net.named_parameters(), strict=True)
    u = torch.randn(2, 3, dtype=torch.float64).requires_grad_()

    def run(u, *values):
        def f(z):
            return 0.5 * torch.func.functional_call(net, dict(zip(names, values, strict=True)), (z,)) + u

        return ak.fixed_point(f, torch.zeros(2, 3, dtype=torch.float64), **TIGHT)[0]

    assert torch.autograd.gradgradcheck(run, (u, *values), fast_mode=True)


def test_adjoint_options_of_its_own(leaves):
    exact = torch.autograd.grad(solve(*leaves)[0].sum(), leaves)
    for implicit in (ak.Implicit(solver=ak.Broyden()), ak.Implicit(rtol=1e-10, max_steps=300, solver=ak.Picard())):
        for got, want in zip(
            torch.autograd.grad(solve(*leaves, gradient=implicit)[0].sum(), leaves), exact, strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    z, info = solve(*leaves, gradient=ak.Implicit(rtol=1e-2))
    z.sum().backward()
    assert (info.adjoint.steps < info.steps).all() and info.adjoint.converged.all()


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_gradient_scales_with_the_loss(leaves, scale):
    one = torch.autograd.grad(solve(*leaves)[0].sum(), leaves)
    scaled = torch.autograd.grad(scale * solve(*leaves)[0].sum(), leaves)
    for a, b in zip(one, scaled, strict=True):
        torch.testing.assert_close(b / scale, a, rtol=1e-9, atol=0)


def test_a_failed_adjoint_is_seen(leaves):
    z, info = solve(*leaves, gradient=ak.Implicit(max_steps=2))
    assert info.adjoint is None
    with pytest.warns(ak.AdjointWarning, match="adjoint solve ended with MAX_STEPS"):
        z.sum().backward()
    assert (info.adjoint.status == ak.Status.MAX_STEPS).all()
    with pytest.raises(ak.ConvergenceError, match="2 of 2 adjoint problems did not converge"):
        info.raise_if_failed()


def test_unrolled(leaves):
    """The derivative of the solver's own arithmetic, Anderson weights included."""
    few = {"rtol": 0.0, "max_steps": 5, "gradient": ak.Unrolled()}
    for solver in (ak.Picard(damping=0.7), ak.Anderson(history=2), ak.Broyden()):
        assert torch.autograd.gradcheck(lambda a, b, s=solver: solve(a, b, solver=s, **few)[0], leaves)
    assert torch.autograd.gradgradcheck(lambda a, b: solve(a, b, solver=ak.Picard(), **few)[0], leaves, fast_mode=True)


def test_unrolled_gives_the_start_a_gradient(leaves):
    a, b = leaves
    z0 = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    z, _ = ak.fixed_point(
        lambda z: torch.tanh(z @ a.mT + b), z0, solver=ak.Picard(), max_steps=3, gradient=ak.Unrolled()
    )
    z1 = torch.tanh(z0 @ a.mT + b)
    expected = torch.autograd.grad(torch.tanh(z1 @ a.mT + b).sum(), z0)
    torch.testing.assert_close(torch.autograd.grad(z.sum(), z0), expected)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_unrolled_last_updates(leaves, keep):
    """With Picard, the last two updates of each problem by hand, though the problems end at different steps."""
    a, b = leaves
    scale = torch.tensor([[0.05], [1.0]], dtype=torch.float64)

    def f(z):
        return torch.tanh(scale * (z @ a.mT) + b)

    z0 = torch.zeros(2, 3, dtype=torch.float64)
    options = {"solver": ak.Picard(), "rtol": 1e-6, "keep": keep}
    z, info = ak.fixed_point(f, z0, gradient=ak.Unrolled(last=2), **options)
    assert info.steps[0] < info.steps[1]
    expected = torch.zeros_like(a)
    for k in range(2):
        y = z0
        for _ in range(int(info.steps[k]) - 3):
            y = f(y).detach()
        (part,) = torch.autograd.grad(f(f(y))[k].sum(), a)
        expected += part
    torch.testing.assert_close(torch.autograd.grad(z.sum(), a)[0], expected)


def test_unrolled_last_draws_the_same_random_numbers():
    weight = torch.tensor(0.5, requires_grad=True)

    def run(gradient):
        torch.manual_seed(3)
        z0 = torch.zeros(4, 8)
        f = lambda z: weight * torch.nn.functional.dropout(z, 0.3) + 1  # noqa: E731
        return ak.fixed_point(f, z0, solver=ak.Picard(), max_steps=6, gradient=gradient)

    (z, info), (expected, expected_info) = run(ak.Unrolled(last=2)), run(ak.Unrolled())
    assert torch.equal(z, expected) and torch.equal(info.residual, expected_info.residual)


def test_approximations_by_hand(leaves):
    a, b = leaves
    z = solve(a, b)[0].detach()
    v = torch.randn_like(z)
    f = lambda z: torch.tanh(z @ a.mT + b)  # noqa: E731

    def gradient(mode):
        return torch.autograd.grad(solve(a, b, gradient=mode)[0], leaves, v)

    def compare(got, out, cotangent):
        for x, y in zip(got, torch.autograd.grad(out, leaves, cotangent, retain_graph=True), strict=True):
            torch.testing.assert_close(x, y)

    compare(gradient(ak.OneStep()), f(z), v)
    compare(gradient(ak.Phantom(steps=3)), f(f(f(z))), v)
    half = z + 0.5 * (f(z) - z)
    compare(gradient(ak.Phantom(steps=2, damping=0.5)), half + 0.5 * (f(half) - half), v)
    leaf = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf), leaf, v)
    (second,) = torch.autograd.grad(f(leaf), leaf, first)
    compare(gradient(ak.Neumann(terms=2)), f(z), v + first + second)
    norms = first.norm(dim=1, keepdim=True) / v.norm(dim=1, keepdim=True)
    clip = float(norms.mean())  # between the two problems' own
    compare(gradient(ak.Neumann(clip=clip)), f(z), v + first * (clip / norms).clamp(max=1))


@pytest.mark.parametrize("mode", MODES[:-2], ids=str)
def test_the_start_has_a_gradient_of_zero(leaves, mode):
    a, b = leaves
    z0 = torch.zeros(2, 3, dtype=torch.float64).requires_grad_()
    z, _ = ak.fixed_point(lambda z: torch.tanh(z @ a.mT + b), z0, gradient=mode)
    assert (torch.autograd.grad(z.sum(), z0)[0] == 0).all()
    cell = ak.nn.AffineCell(3, 3).double()
    z, _ = ak.fixed_point(cell.bind(b), z0, gradient=mode)
    assert (torch.autograd.grad(z.sum(), z0)[0] == 0).all()


def test_a_start_that_the_map_also_uses():
    z0 = torch.full((2, 3), 0.1, dtype=torch.float64).requires_grad_()
    z, _ = ak.fixed_point(lambda z: 0.5 * z + z0, z0, **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(z.sum(), z0)[0], torch.full_like(z0, 2.0))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_nothing_to_differentiate(mode):
    z, _ = ak.fixed_point(lambda z: 0.5 * z + 1, torch.zeros(2, 3), gradient=mode)
    assert not z.requires_grad
    z, _ = ak.fixed_point(ak.nn.AffineCell(3, 3).requires_grad_(False).bind(torch.ones(2, 3)), torch.zeros(2, 3))
    assert not z.requires_grad


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_constant_map(mode):
    shift = torch.ones(2, 3).requires_grad_()
    z, _ = ak.fixed_point(lambda z: 2 * shift, torch.zeros(2, 3), gradient=mode)
    (gradient,) = torch.autograd.grad(z.sum(), shift)
    assert (gradient == 2).all()


@pytest.mark.parametrize("mode", [ak.OneStep(), ak.Phantom(), ak.Neumann()], ids=str)
def test_approximations_have_no_second_derivative(leaves, mode):
    z, _ = solve(*leaves, gradient=mode)
    with pytest.raises(RuntimeError, match=r"has no second derivative.*Drop create_graph=True"):
        torch.autograd.grad(z.sum(), leaves, create_graph=True)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, v):
        x, y = ctx.saved_tensors
        return v * y, v * x


def refused(f, *leaves):
    z, _ = ak.fixed_point(f, torch.zeros(2, 3, dtype=torch.float64))
    torch.autograd.grad(z.sum(), leaves, retain_graph=True)  # the first derivative is there
    with pytest.raises(RuntimeError, match="cannot form a second derivative of this map: ") as caught:
        torch.autograd.grad(z.sum(), leaves, create_graph=True)
    return str(caught.value)


def test_second_derivatives_are_refused_where_the_map_hides_tensors(leaves):
    a, b = leaves
    row = a[0].detach().clone().requires_grad_()
    assert "out of torch's sight" in refused(lambda z: Product.apply(0.3 * torch.tanh(z), row) + b, row, b)


def test_second_derivatives_are_refused_where_the_map_is_random(leaves):
    _, b = leaves
    assert "is it random" in refused(lambda z: 0.3 * torch.nn.functional.dropout(z, 0.5) + b * torch.rand(2, 3), b)


def test_second_derivatives_are_refused_where_the_map_is_compiled(leaves):
    a, b = leaves
    assert "it is compiled" in refused(torch.compile(lambda z: torch.tanh(z @ a.mT + b), backend="eager"), a, b)


def test_third_derivatives_of_an_unknown_map_are_refused(leaves):
    z, _ = solve(*leaves)
    (first,) = torch.autograd.grad(z.sum(), leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="third derivatives are not supported"):
        torch.autograd.grad(first.square().sum(), leaves[1], create_graph=True)


# Unrolled's last node is torch's own, which takes no weak reference.
@pytest.mark.parametrize("mode", [mode for mode in MODES if not isinstance(mode, ak.Unrolled)], ids=str)
def test_a_result_leaves_nothing_behind(leaves, mode):
    """No reference cycle keeps a solve's graph alive."""
    gc.collect()
    gc.disable()
    try:
        z, info = solve(*leaves, gradient=mode)
        z.sum().backward()
        alive = weakref.ref(z.grad_fn)
        del z, info
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", [ak.Implicit(), ak.OneStep()], ids=str)
def test_hooks_of_modules_and_parameters_fire_once(mode):
    net = nn.Linear(3, 3).double()
    with torch.no_grad():
        net.weight.mul_(0.3)
    fired = []
    net.weight.register_post_accumulate_grad_hook(lambda p: fired.append("weight"))
    z, _ = ak.fixed_point(lambda z: torch.tanh(net(z)), torch.zeros(2, 3).double(), gradient=mode)
    z.sum().backward()
    assert fired == ["weight"]
    assert net.weight.grad is not None and net.bias.grad is not None


def test_backward_twice(leaves):
    z, _ = solve(*leaves)
    first = torch.autograd.grad(z.sum(), leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(z.sum(), leaves), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(z.sum(), leaves)
