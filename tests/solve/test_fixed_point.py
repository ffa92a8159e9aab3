"""The front door: what it accepts, what it refuses and in which words, and what it promises of values."""

import sys

import pytest
import torch

import attractor_kernels as ak


def contraction(z):
    return 0.5 * torch.tanh(z) + 1


def test_arguments_are_by_keyword_and_known():
    with pytest.raises(TypeError, match="positional"):
        ak.fixed_point(contraction, torch.zeros(2, 3), ak.Picard())
    with pytest.raises(TypeError, match="tolerance"):
        ak.fixed_point(contraction, torch.zeros(2, 3), tolerance=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solver": "anderson"}, TypeError, "solver must be an Auto, Anderson, Picard or Broyden, got 'anderson'"),
        ({"solver": ak.Picard}, TypeError, r"did you mean Picard\(\)\?"),
        ({"solver": None}, TypeError, "solver must be .*, got None"),
        ({"gradient": ak.Auto()}, TypeError, "gradient must be an Implicit, OneStep, Phantom, Neumann or Unrolled"),
        ({"gradient": ak.Implicit}, TypeError, r"did you mean Implicit\(\)\?"),
        ({"rtol": -1e-3}, ValueError, "rtol must be at least 0, got -0.001"),
        ({"rtol": float("nan")}, ValueError, "rtol must be finite, got nan"),
        ({"rtol": "1e-3"}, TypeError, "rtol must be a float, got '1e-3' of type str"),
        ({"atol": -1}, ValueError, "atol must be at least 0, got -1"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        ({"max_steps": 2**31}, ValueError, "max_steps must be at most 2147483647, got 2147483648"),
        ({"max_steps": 2.5}, TypeError, "max_steps must be an int, got 2.5 of type float"),
        ({"min_steps": 51}, ValueError, "min_steps must be between 0 and 50, got 51"),
        ({"min_steps": -1}, ValueError, "min_steps must be between 0 and 50, got -1"),
        ({"batch_ndim": -1}, ValueError, "batch_ndim must be at least 0, got -1"),
        ({"batch_ndim": 3}, ValueError, "batch_ndim must be at most z0's 2 dimensions, got 3"),
        ({"batch_ndim": True}, TypeError, "batch_ndim must be an int, got True"),
        ({"mixing_ndim": 3}, ValueError, "mixing_ndim must be at most z0's 2 dimensions, got 3"),
        ({"mixing_ndim": 0}, ValueError, r"mixing_ndim must be at least batch_ndim \(1\), got 0"),
        ({"keep": "first"}, ValueError, "keep must be one of 'last', 'best', got 'first'"),
        ({"trace": 1}, TypeError, "trace must be a bool, got 1 of type int"),
        ({"precision": "low"}, ValueError, "precision must be one of 'full', 'mixed', got 'low'"),
        ({"backend": "gpu"}, ValueError, "backend must be one of .*, got 'gpu'"),
        ({"solver": []}, TypeError, r"solver must be .*, got \[\]"),
    ],
    ids=str,
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        ak.fixed_point(contraction, torch.zeros(2, 3), **options)
    with pytest.raises(error, match=message):
        ak.nn.FixedPoint(ak.nn.AffineCell(3, 3), **options)(torch.zeros(2, 3))


def test_an_equal_option_of_another_type_is_still_checked():
    """1, 1.0 and True are equal, so a table of checked options must not take one for the other."""
    z0 = torch.zeros(2, 3)
    ak.fixed_point(contraction, z0, trace=True, batch_ndim=1, max_steps=1)
    for wrong in ({"trace": 1}, {"batch_ndim": True}, {"batch_ndim": 1.0}, {"max_steps": True}):
        with pytest.raises(TypeError):
            ak.fixed_point(contraction, z0, **{"trace": True, "batch_ndim": 1, "max_steps": 1, **wrong})


@pytest.mark.parametrize(
    ("z0", "error", "message"),
    [
        (None, TypeError, "z0 must be a Tensor, got NoneType"),
        ([0.0], TypeError, "z0 must be a Tensor, got list"),
        (torch.zeros(2, 3).int(), TypeError, "z0 must have a floating-point dtype, got torch.int32"),
        (torch.zeros(2, 3).cfloat(), TypeError, "z0 must have a floating-point dtype, got torch.complex64"),
        (torch.tensor(0.0), ValueError, "batch_ndim must be at most z0's 0 dimensions, got 1"),
    ],
)
def test_wrong_states(z0, error, message):
    with pytest.raises(error, match=message):
        ak.fixed_point(contraction, z0)


@pytest.mark.parametrize("solver", [ak.Auto(), ak.Broyden()], ids=str)
@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda z: z[:1], ValueError, r"f must return z's shape \[2, 3\], got \[1, 3\]"),
        (lambda z: z.sum(), ValueError, r"f must return z's shape \[2, 3\], got \[\]"),
        (lambda z: z.double(), TypeError, "f must return z's dtype torch.float32, got torch.float64"),
        (lambda z: z.to("meta"), ValueError, "f must return a tensor on z's device cpu, got meta"),
        (lambda z: (z, None), TypeError, "f must return a Tensor, got tuple"),
        (lambda z: None, TypeError, "f must return a Tensor, got NoneType"),
        (lambda z: z.mul_(0.5), ValueError, "f must not modify z in place"),
        (3, TypeError, "f must be a callable .*, got 3"),
    ],
)
def test_wrong_maps(f, error, message, solver):
    with pytest.raises(error, match=message):
        ak.fixed_point(f, torch.ones(2, 3), solver=solver)


def test_an_error_in_the_map_is_the_map_s_own():
    def f(z):
        raise ZeroDivisionError("in f")

    with pytest.raises(ZeroDivisionError, match="in f"):
        ak.fixed_point(f, torch.ones(2, 3))


def test_wrong_states_of_a_bound_cell():
    bound = ak.nn.AffineCell(4, 2).bind(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"z0 must have shape \[5, 4\], .*, got \[4, 4\]"):
        ak.fixed_point(bound, torch.zeros(4, 4))
    with pytest.raises(TypeError, match=r"z0 must have the bound cell's dtype torch.float32, got torch.float64"):
        ak.fixed_point(bound, torch.zeros(5, 4).double())
    with pytest.raises(ValueError, match="z0 must be on the bound cell's device cpu, got meta"):
        ak.fixed_point(bound, torch.zeros(5, 4, device="meta"))
    with pytest.raises(TypeError, match="z0 must be a Tensor, got int"):
        ak.fixed_point(bound, 0)


STARTS = {
    "contiguous": lambda: torch.randn(4, 6),
    "transposed": lambda: torch.randn(6, 4).T,
    "expanded": lambda: torch.randn(1, 6).expand(4, 6),
    "strided": lambda: torch.randn(8, 12)[::2, ::2],
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("solver", [ak.Picard(), ak.Anderson(), ak.Auto(), ak.Broyden()], ids=str)
@pytest.mark.parametrize("steps", [1, 30])
def test_the_start_is_left_alone(start, solver, steps):
    z0 = STARTS[start]()
    before = z0.clone()
    z, info = ak.fixed_point(contraction, z0, solver=solver, max_steps=steps, rtol=1e-5)
    assert torch.equal(z0, before)
    assert z.is_contiguous() and z.data_ptr() != z0.data_ptr()
    expected, _ = ak.fixed_point(contraction, before, solver=solver, max_steps=steps, rtol=1e-5)
    assert torch.equal(z, expected)
    if steps == 1:
        assert torch.equal(z, before) and (info.steps == 1).all()


@pytest.mark.parametrize("shape", [(0, 3), (0,), (2, 0), (0, 0, 4)])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("solver", [ak.Auto(), ak.Broyden()], ids=str)
def test_empty(shape, grad, solver):
    shift = torch.zeros(()).requires_grad_(grad)
    z, info = ak.fixed_point(lambda z: contraction(z) + shift, torch.zeros(shape), solver=solver, trace=True)
    assert z.shape == shape
    assert info.steps.shape == info.status.shape == info.residual.shape == shape[:1]
    assert info.trace.shape == (50, *shape[:1])
    info.raise_if_failed()
    if grad:
        z.sum().backward()
        assert shift.grad == 0


def test_batch_dimensions():
    z0 = torch.randn(2, 3, 4)
    for batch_ndim, shape in ((0, ()), (1, (2,)), (2, (2, 3)), (3, (2, 3, 4))):
        z, info = ak.fixed_point(contraction, z0, batch_ndim=batch_ndim, trace=True)
        assert z.shape == z0.shape
        assert info.steps.shape == info.converged.shape == shape
        assert info.trace.shape == (50, *shape)
        assert info.steps.dtype == torch.int32 and info.residual.dtype == torch.float32
        assert info.status.dtype == torch.uint8 and info.converged.dtype == torch.bool


def test_info_reports_failures():
    rates = torch.tensor([[0.1], [0.999], [3.0]])
    _, info = ak.fixed_point(lambda z: rates * z + 1, torch.zeros(3, 1), solver=ak.Picard(), max_steps=20)
    assert [ak.Status(s).name for s in info.status.tolist()] == ["CONVERGED", "MAX_STEPS", "DIVERGED"]
    message = r"2 of 3 problems did not converge \(MAX_STEPS: 1, DIVERGED: 1\); worst relative residual"
    with pytest.raises(ak.ConvergenceError, match=message):
        info.raise_if_failed()
    assert "backend=" in repr(info)


def test_precision_follows_torch(monkeypatch):
    fixed_point = sys.modules["attractor_kernels.solve.fixed_point"]  # the package names the function so
    seen = []
    solve = fixed_point.solve
    monkeypatch.setattr(fixed_point, "solve", lambda f, z0, spec: (seen.append(spec.mixed), solve(f, z0, spec))[1])
    for setting in ("highest", "high", "medium", "highest"):
        torch.set_float32_matmul_precision(setting)
        ak.fixed_point(contraction, torch.zeros(1, 1))
    assert seen == [False, True, True, False]
    seen.clear()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):  # that setting is none of the halves'
        for precision in (None, "full"):
            ak.fixed_point(contraction, torch.zeros(1, 1, dtype=dtype), precision=precision)
    assert seen == [True, False, True, False, False, False]


def test_a_cell_on_more_dimensions_is_still_fused():
    cell = ak.nn.AffineCell(4, 2)
    x = torch.randn(3, 5, 2)
    z, info = ak.fixed_point(cell.bind(x), torch.zeros(3, 5, 4), batch_ndim=2, trace=True, rtol=1e-6)
    flat, flat_info = ak.fixed_point(cell.bind_injection(cell.inject(x).flatten(0, 1)), torch.zeros(15, 4), rtol=1e-6)
    assert torch.equal(z.flatten(0, 1), flat)
    assert info.steps.shape == (3, 5) and torch.equal(info.steps.flatten(), flat_info.steps)
    assert info.trace.shape == (50, 3, 5)
    joint, info = ak.fixed_point(cell.bind(x), torch.zeros(3, 5, 4), rtol=1e-6)  # five rows make one problem
    assert info.steps.shape == (3,)
    torch.testing.assert_close(joint, z, rtol=1e-4, atol=1e-5)
