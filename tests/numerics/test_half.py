"""float16 and bfloat16 states: inner products and small solves in float32 or wider."""

import pytest
import torch
from maps import BACKENDS, HALVES, SOLVERS, family, true_residual

import attractor_kernels as ak

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@every_solver
@halves
@pytest.mark.parametrize("kind", ["orth", "sym"])
def test_solution_within_the_dtypes_rounding(backend, solver, dtype, kind):
    weight, u = family(kind, 8, 48, dtype)
    f = lambda z: torch.tanh(z @ weight.mT + u)  # noqa: E731
    rtol = 16 * torch.finfo(dtype).eps
    z, info = ak.fixed_point(
        f, torch.zeros(8, 48, dtype=dtype), solver=solver, rtol=rtol, max_steps=200, keep="best", backend=backend
    )
    assert z.dtype == dtype and info.residual.dtype == torch.float32
    assert info.converged.all(), info.residual
    exact = weight.double(), u.double()
    reference, _ = ak.fixed_point(
        lambda z: torch.tanh(z @ exact[0].mT + exact[1]),
        torch.zeros(8, 48, dtype=torch.float64),
        rtol=1e-12,
        max_steps=500,
        backend=backend,
    )
    # Both families contract at .9: an error of at most ten residuals.
    error = (z.double() - reference).norm(dim=1) / reference.norm(dim=1)
    assert (error <= 12 * rtol).all()
    torch.testing.assert_close(info.residual.double(), true_residual(f, z), rtol=1e-2, atol=1e-6)


@halves
def test_squares_that_overflow_the_dtype(backend, dtype):
    """4096 entries near 100: the sum of squares, 4e7, is no float16 number; in bfloat16 it stops growing at 256."""
    shift = torch.linspace(60, 100, 4096).to(dtype)
    f = lambda z: 0.25 * z + shift  # noqa: E731
    z, info = ak.fixed_point(
        f, torch.zeros(2, 4096, dtype=dtype), solver=ak.Anderson(), rtol=16 * torch.finfo(dtype).eps, backend=backend
    )
    assert info.converged.all()
    torch.testing.assert_close(info.residual.double(), true_residual(f, z), rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(
        z.float(), (shift / 0.75).float().expand(2, -1), rtol=20 * torch.finfo(dtype).eps, atol=0
    )


@halves
def test_differences_below_the_smallest_square(backend, dtype):
    """Residuals of 1e-4 have squares of 1e-8, zero in float16: Anderson still sees them."""
    rates = torch.tensor([0.9, 0.5, 0.7, 0.2], dtype=dtype)
    shift = 1e-3 * torch.tensor([[1.0, 2.0, -1.0, 0.5]], dtype=dtype)
    _z, info = ak.fixed_point(
        lambda z: rates * z + shift,
        torch.zeros(1, 4, dtype=dtype),
        solver=ak.Anderson(4),
        rtol=16 * torch.finfo(dtype).eps,
        max_steps=40,
        keep="best",
        backend=backend,
    )
    assert info.converged.all()
    picard = ak.fixed_point(
        lambda z: rates * z + shift,
        torch.zeros(1, 4, dtype=dtype),
        solver=ak.Picard(),
        rtol=16 * torch.finfo(dtype).eps,
        max_steps=100,
        backend=backend,
    )[1]
    assert info.steps.item() < picard.steps.item()


@halves
@pytest.mark.parametrize("options", [ak.Implicit(), ak.OneStep(), ak.Phantom(), ak.Neumann(), ak.Unrolled()], ids=repr)
def test_gradients_in_half(backend, dtype, options):
    # Unrolled Anderson steps differentiate weights that 16-bit differences leave noisy.
    solver = ak.Picard() if isinstance(options, ak.Unrolled) else ak.Auto()
    weight, u = family("sym", 6, 16, torch.float64)

    def gradients(dtype, rtol):
        w, x = (0.7 * weight).to(dtype).requires_grad_(), u.to(dtype).requires_grad_()
        z, _ = ak.fixed_point(
            lambda z: torch.tanh(z @ w.mT + x),
            torch.zeros(6, 16, dtype=dtype),
            solver=solver,
            gradient=options,
            rtol=rtol,
            max_steps=50,
            backend=backend,
        )
        return [g.double() for g in torch.autograd.grad(z.sum(), (w, x))]

    rtol = 8 * torch.finfo(dtype).eps
    # What is unrolled depends on where it ends, so that is compared at the same tolerance.
    exact_rtol = rtol if isinstance(options, ak.Unrolled) else 1e-10
    for half, exact in zip(gradients(dtype, rtol), gradients(torch.float64, exact_rtol), strict=True):
        assert (half - exact).norm() <= 40 * torch.finfo(dtype).eps * exact.norm()
