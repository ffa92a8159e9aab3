"""The solving operators: derivatives of every operator, batching, messages. test_opcheck.py has torch's own checks."""

import pytest
import torch
from operators import PICARD, PROBLEMS, operator, problem

import attractor_kernels as ak


@pytest.mark.parametrize("name", PROBLEMS)
def test_derivatives(name):
    """First and second derivatives with respect to every tensor."""
    op = operator("attractor_kernels", name)
    arguments = problem(name)
    places = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad]

    def solve(*leaves):
        filled = list(arguments)
        for i, t in zip(places, leaves, strict=True):
            filled[i] = t
        return op(*filled, *PICARD)[0]

    leaves = [arguments[i] for i in places]
    assert torch.autograd.gradcheck(solve, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(solve, leaves, fast_mode=True)


def test_only_z_has_a_gradient():
    arguments = problem("solve_affine")
    z0 = arguments[0].clone().requires_grad_()
    result = ak.ops.SolveResult(*operator("attractor_kernels", "solve_affine")(z0, *arguments[1:], *PICARD))
    assert result.z.requires_grad
    assert not any(t.requires_grad for t in result[1:])
    (gradient,) = torch.autograd.grad(result.z.sum(), z0)
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_solved_in_float32(dtype):
    z0, u, weight, leak, scale, *constants = problem("solve_affine")
    z0, u, weight, leak = (t.detach().to(dtype) for t in (z0, u, weight, leak))
    tail = (1, 5, 1.0, 1e-8, 1e-6, 0.0, 100, 0, False, False, False)
    op = operator("attractor_kernels_reference", "solve_affine")
    half = ak.ops.SolveResult(*op(z0, u, weight, leak, scale, *constants, *tail))
    full = ak.ops.SolveResult(*op(z0.float(), u.float(), weight.float(), leak.float(), scale, *constants, *tail))
    assert half.z.dtype == dtype
    assert torch.equal(half.z, full.z.to(dtype))
    assert torch.equal(half.steps, full.steps)
    assert (half.status == 0).all()
    assert (half.residual <= 1e-6).all()


def test_vmap_over_rows_and_over_weights():
    u = torch.randn(6, 5, 4)
    weights = 0.3 * torch.randn(6, 4, 4)

    def solve(u, weight):
        return ak.ops.solve_affine(torch.zeros(5, 4), u, weight, solver=ak.Picard(), rtol=1e-6)[:4]

    shared = torch.func.vmap(solve, in_dims=(0, None))(u, weights[0])
    own = torch.func.vmap(solve)(u, weights)
    for k in range(6):
        for got, want in zip(shared, solve(u[k], weights[0]), strict=True):
            torch.testing.assert_close(got[k], want)
        for got, want in zip(own, solve(u[k], weights[k]), strict=True):
            torch.testing.assert_close(got[k], want)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"z0": torch.zeros(3)}, ValueError, r"z0 must have shape \[B, D\], got \[3\]"),
        ({"z0": torch.zeros(2, 3).int()}, TypeError, "z0 must have a floating-point dtype, got torch.int32"),
        ({"z0": None}, TypeError, "z0 must be a Tensor, got NoneType"),
        ({"u": torch.zeros(2, 4)}, ValueError, r"u must have shape \[2, 3\], got \[2, 4\]"),
        ({"u": torch.zeros(2, 3).double()}, TypeError, "u must have z0's dtype torch.float32, got torch.float64"),
        ({"u": 0.0}, TypeError, "u must be a Tensor, got float"),
        ({"weight": torch.zeros(3, 2)}, ValueError, r"weight must have shape \[3, 3\], got \[3, 2\]"),
        ({"weight": torch.zeros(3, 3, device="meta")}, ValueError, "weight must be on z0's device cpu, got meta"),
        ({"leak": torch.zeros(2)}, ValueError, r"leak must have shape \[3\], got \[2\]"),
        ({"activation": "swiglu"}, ValueError, "activation must be one of 'identity', .*, got 'swiglu'"),
        ({"activation": 1}, TypeError, "activation must be one of .*, got 1 of type int"),
        ({"activation": "partial_relu", "pieces": 4}, ValueError, "pieces must be between 0 and 3, got 4"),
        ({"solver": ak.Broyden()}, TypeError, "solver must be an Auto, Anderson or Picard, got Broyden"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        ({"min_steps": 60}, ValueError, "min_steps must be between 0 and 50, got 60"),
        ({"rtol": -1.0}, ValueError, "rtol must be at least 0, got -1.0"),
        ({"keep_best": 1}, TypeError, "keep_best must be a bool, got 1 of type int"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, error, message):
    given = {"z0": torch.zeros(2, 3), "u": torch.zeros(2, 3), "weight": torch.zeros(3, 3), **arguments}
    with pytest.raises(error, match=message):
        ak.ops.solve_affine(**given)


def test_wrong_arguments_of_the_other_cells():
    z, w = torch.zeros(2, 3), torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"w1 must have shape \[10, 3\], got \[5, 3\]"):
        ak.ops.solve_mlp(z, z, torch.zeros(5, 3), None, torch.zeros(3, 5), activation="swiglu")
    with pytest.raises(ValueError, match=r"b1 must have shape \[5\]"):
        ak.ops.solve_mlp(z, z, torch.zeros(5, 3), torch.zeros(3), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="norm must be one of 'none', 'layer', 'rms', got 'batch'"):
        ak.ops.solve_mlp(z, z, w, None, w, norm="batch")
    with pytest.raises(TypeError, match="skip must be a float"):
        ak.ops.solve_mlp(z, z, w, None, w, skip="1")
    with pytest.raises(ValueError, match=r"u must have shape \[2, 6\], got \[2, 3\]"):
        ak.ops.solve_gated(z, z, torch.zeros(6, 3))


@pytest.mark.skipif(not ak.backends.available()["cpu"].usable, reason="the compiled CPU kernels are not built")
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_raw_call_cannot_read_outside_its_arguments(name):
    """The compiled operators themselves: each tensor too short, too long, or of another number of dimensions."""
    op, arguments = operator("attractor_kernels", name), problem(name)
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    assert (op(*arguments, *PICARD)[3] == 0).all()
    tensors = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)]
    for i in tensors:
        t = arguments[i]
        for d in range(t.dim()):
            for wrong in (t.narrow(d, 0, t.shape[d] - 1), torch.cat([t, t, t], d), t.unsqueeze(d)):
                given = [*arguments[:i], wrong, *arguments[i + 1 :]]
                with pytest.raises(RuntimeError, match="must have"):
                    op(*given, *PICARD)


@pytest.mark.skipif(not ak.backends.available()["cpu"].usable, reason="the compiled CPU kernels are not built")
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 3, "solver must be 0, 1 or 2, got 3"),
        (1, 0, "history must be between 1 and 32, got 0"),
        (1, 33, "history must be between 1 and 32, got 33"),
        (2, 0.0, "damping must not be 0"),
        (6, 0, "max_steps must be at least 1, got 0"),
    ],
)
def test_a_raw_call_checks_its_options(place, value, message):
    tail = [1, *PICARD[1:]]
    tail[place] = value
    with pytest.raises(RuntimeError, match=message):
        operator("attractor_kernels", "solve_affine")(*problem("solve_affine"), *tail)


def test_a_failed_adjoint_warns():
    """The contraction of this map at its fixed point is 0.95: ten steps cannot solve its adjoint."""
    u = torch.zeros(2, 3, dtype=torch.float64).requires_grad_()
    weight = 0.95 * torch.eye(3, dtype=torch.float64)
    z = ak.ops.solve_affine(torch.zeros_like(u), u, weight, activation="identity", solver=ak.Picard(), max_steps=10).z
    with pytest.warns(ak.AdjointWarning, match="adjoint solve ended with MAX_STEPS at a relative residual of about"):
        z.sum().backward()
