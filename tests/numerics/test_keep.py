"""Early stop: "best" and "last" are exact, and gradient and info are those of the state that is returned."""

import numpy as np
import pytest
import torch
from maps import BACKENDS, FLOATS, SOLVERS, Recorder, assert_same_bits, true_residual

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
both = pytest.mark.parametrize("keep", ["best", "last"])

ROWS, SIZE = 5, 4


def swinging_map(dtype=torch.float64):
    """Logistic maps at rates between a fixed point and chaos: relative residuals go up and down for every solver."""
    rate = torch.linspace(2.9, 3.9, ROWS * SIZE, dtype=dtype).view(ROWS, SIZE)
    return lambda z: rate * z * (1 - z)


@every_solver
@both
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("limit", [1, 2, 5, 9, 14])
def test_value_steps_and_residual_are_of_one_iterate(backend, solver, keep, dtype, limit):
    seen = Recorder(swinging_map(dtype))
    z0 = torch.linspace(0.05, 0.6, ROWS * SIZE, dtype=dtype).view(ROWS, SIZE)
    z, info = ak.fixed_point(seen, z0, solver=solver, rtol=0.0, max_steps=limit, keep=keep, backend=backend, trace=True)
    measured = torch.stack([true_residual(seen.f, state) for state in seen.seen])  # [limit, ROWS]
    running = info.status == ak.Status.MAX_STEPS
    assert running.sum() >= ROWS - 1
    if keep == "last":
        assert (info.steps[running] == limit).all()
    elif limit >= 9 and isinstance(solver, ak.Picard):
        assert (info.steps[running] < limit).any()
    for row in torch.nonzero(running).flatten().tolist():
        k = info.steps[row].item() - 1
        assert_same_bits(z[row], seen.seen[k][row])
        assert info.residual[row].item() == pytest.approx(measured[k, row].item(), rel=1e-4)
        assert info.trace[k, row] == info.residual[row]
        if keep == "best":
            assert info.residual[row] == info.trace[:, row].min()
            assert measured[k, row] <= 1.001 * measured[:, row].min() + torch.finfo(dtype).eps


def test_best_of_a_tie_is_the_first(backend):
    """A map that swings between two states with one residual: the earlier iterate is kept."""
    z0 = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    z, info = ak.fixed_point(lambda z: -z, z0, solver=ak.Picard(), max_steps=6, keep="best", backend=backend)
    assert torch.equal(z, z0) and info.steps.item() == 1
    z, info = ak.fixed_point(lambda z: -z, z0, solver=ak.Picard(), max_steps=6, keep="last", backend=backend)
    assert torch.equal(z, -z0) and info.steps.item() == 6


def parametrised(theta):
    """A map whose Jacobian depends on the state, so that a gradient taken elsewhere is another one."""
    gain = torch.linspace(0.5, 3.3, ROWS, dtype=torch.float64)[:, None]
    mix = torch.linspace(-0.4, 0.5, SIZE * SIZE, dtype=torch.float64).view(SIZE, SIZE)
    return lambda z: gain * torch.sin(z @ mix.mT + theta) * torch.cos(z)


def early(solver, keep, gradient, theta, backend, limit=7):
    z0 = torch.linspace(-0.5, 0.9, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    return ak.fixed_point(
        parametrised(theta), z0, solver=solver, gradient=gradient, rtol=0.0, max_steps=limit, keep=keep, backend=backend
    )


def jacobians(theta, z):
    """Per row: df/dz [D, D] and df/dtheta [D, D] at z."""
    f = parametrised(theta.detach())
    by_z, by_theta = torch.autograd.functional.jacobian(lambda z, t: parametrised(t)(z), (z.detach(), theta.detach()))
    assert f(z).shape == z.shape
    rows = range(ROWS)
    return [by_z[k, :, k].numpy() for k in rows], [by_theta[k].numpy() for k in rows]


@every_solver
@both
def test_value_does_not_depend_on_whether_a_gradient_is_asked_for(backend, solver, keep):
    theta = torch.linspace(0.1, 0.6, SIZE, dtype=torch.float64)
    z, info = early(solver, keep, ak.Implicit(), theta, backend)
    for gradient in (ak.Implicit(), ak.OneStep(), ak.Neumann(2)):
        with_grad, same = early(solver, keep, gradient, theta.clone().requires_grad_(), backend)
        assert with_grad.requires_grad
        assert_same_bits(with_grad, z)
        assert torch.equal(same.steps, info.steps)
        assert_same_bits(same.residual, info.residual)


@every_solver
@both
def test_gradient_is_that_of_the_state_returned(backend, solver, keep):
    """Far from the fixed point the adjoint equation is the one linearised at the value returned, by a dense solve."""
    theta = torch.linspace(0.1, 0.6, SIZE, dtype=torch.float64, requires_grad=True)
    v = torch.linspace(1, 2, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    adjoint = ak.Implicit(rtol=1e-12, max_steps=400, solver=ak.Anderson(4, ridge=0.0))
    z, info = early(solver, keep, adjoint, theta, backend)
    (gradient,) = torch.autograd.grad((z * v).sum(), theta)
    by_z, by_theta = jacobians(theta, z)
    expected = sum(
        np.linalg.solve((np.eye(SIZE) - jz).T, v[k].numpy()) @ jt
        for k, (jz, jt) in enumerate(zip(by_z, by_theta, strict=True))
    )
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-7)
    assert info.adjoint.converged.all()


@both
@pytest.mark.parametrize(
    ("options", "terms"),
    [(ak.OneStep(), 0), (ak.Neumann(1), 1), (ak.Neumann(3), 3)],
    ids=["onestep", "neumann1", "neumann3"],
)
def test_truncated_gradients_are_those_of_the_state_returned(backend, keep, options, terms):
    theta = torch.linspace(0.1, 0.6, SIZE, dtype=torch.float64, requires_grad=True)
    v = torch.linspace(1, 2, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    z, _ = early(ak.Picard(), keep, options, theta, backend)
    (gradient,) = torch.autograd.grad((z * v).sum(), theta)
    expected = np.zeros(SIZE)
    for k, (jz, jt) in enumerate(zip(*jacobians(theta, z), strict=True)):
        expected += sum(np.linalg.matrix_power(jz.T, p) @ v[k].numpy() for p in range(terms + 1)) @ jt
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-10)


@both
@pytest.mark.parametrize("last", [None, 2])
def test_unrolled_gradient_is_that_of_the_state_returned(backend, keep, last):
    """Picard by hand, each row as far as the step it was returned at."""
    theta = torch.linspace(0.1, 0.6, SIZE, dtype=torch.float64, requires_grad=True)
    v = torch.linspace(1, 2, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    z, info = early(ak.Picard(), keep, ak.Unrolled(last), theta, backend)
    (gradient,) = torch.autograd.grad((z * v).sum(), theta)

    expected = torch.zeros(SIZE, dtype=torch.float64)
    start = torch.linspace(-0.5, 0.9, ROWS * SIZE, dtype=torch.float64).view(ROWS, SIZE)
    for row, steps in enumerate(info.steps.tolist()):
        state = start
        for k in range(steps - 1):
            state = parametrised(theta)(state)
            if last is not None and steps - 1 - k > last:
                state = state.detach()
        torch.testing.assert_close(state[row], z[row])
        if steps > 1:
            expected += torch.autograd.grad((state[row] * v[row]).sum(), theta)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
