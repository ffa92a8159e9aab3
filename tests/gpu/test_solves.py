"""Every solving operator on a device against float64 on the CPU."""

import pytest
import torch
from kernels import make_affine, make_gated, make_mlp, one_of_each
from solving import (
    ANDERSON,
    AUTO,
    CLOSE,
    DTYPES,
    PICARD,
    SIZES,
    SOLVERS,
    fixed_point,
    need_for,
    on,
    relative,
    rows_of,
    same_bits,
    solve,
    tail,
)

import attractor_kernels as ak
from attractor_kernels import Status
from attractor_kernels.backends import use_plan

pytestmark = pytest.mark.gpu
CASES = range(len(one_of_each(1)))
BY_EITHER = pytest.mark.parametrize("wgmma", [False, True], ids=["mma", "wgmma"])
# float32 by every solver; the halves differ from it only in how they are read and written.
WAYS = [(torch.float32, name) for name in SOLVERS] + [(dtype, "auto") for dtype in DTYPES[1:]]


def check(backend, device, case, options, dtype=torch.float32):
    need_for(backend, case, device, dtype, options)
    got, want = solve(backend, case, on(case, device, dtype), options), fixed_point(case, dtype)
    assert (want.status == Status.CONVERGED).all()
    assert got.z.dtype == dtype and got.z.device.type == device.type
    assert (got.status == Status.CONVERGED).all(), got.status.unique()
    assert (got.residual <= options.rtol).all()
    assert relative(got.z, want.z) <= CLOSE[dtype]
    return got


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize(("dtype", "solver"), WAYS, ids=lambda value: str(value).removeprefix("torch."))
def test_every_operator(backend, device, number, dtype, solver):
    check(backend, device, one_of_each(70)[number], tail(SOLVERS[solver]), dtype)


@pytest.mark.parametrize("number", CASES)
def test_every_operator_in_mixed_precision(backend, device, number):
    """To the same true residual, which float64 is asked for."""
    case, options = one_of_each(70, *SIZES[True])[number], tail(AUTO, mixed=True)
    got = check(backend, device, case, options)
    z = got.z.double().cpu()
    f = case.f(z)
    residual = (f - z).norm(dim=1) / f.norm(dim=1)
    assert residual.max() <= 1.2 * options.rtol + 1e-6


@pytest.mark.parametrize("dim", [1, 2, 16, 17, 64, 100, 128, 256, 257, 512, 1000, 1024, 2048])
@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize("mixed", [False, True], ids=["full", "mixed"])
def test_states_of_an_affine_cell(backend, device, dim, rows, mixed):
    check(backend, device, make_affine(rows, dim, leak=True), tail(ANDERSON, mixed=mixed))


def need_products(backend, device, wgmma):
    if backend != "cuda":
        pytest.skip("about the products of the CUDA kernels")
    if wgmma and torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("products by warpgroups are those of compute capability 9.0 alone")


@BY_EITHER
@pytest.mark.parametrize("dim", [96, 130, 256, 272])
@pytest.mark.parametrize("rows", [5, 5000])
def test_products_of_changes(backend, device, rows, dim, wgmma):
    """Wrong ones would be found out by the full product and taken back: the same result after more steps."""
    need_products(backend, device, wgmma)
    case = make_affine(rows, dim)
    full = check(backend, device, case, tail(AUTO))
    with use_plan("solve_affine", backend="cuda", mixed=True, wgmma=wgmma):
        mixed = check(backend, device, case, tail(AUTO, mixed=True))
    assert mixed.steps.double().mean() <= 1.12 * full.steps.double().mean() + 2


@BY_EITHER
@pytest.mark.parametrize("number", CASES)
def test_products_of_changes_of_every_operator(backend, device, number, wgmma):
    need_products(backend, device, wgmma)
    case = one_of_each(300, *SIZES[True])[number]
    full = check(backend, device, case, tail(AUTO))
    with use_plan(case.op, backend="cuda", mixed=True, wgmma=wgmma):
        mixed = check(backend, device, case, tail(AUTO, mixed=True))
    assert mixed.steps.double().mean() <= 1.12 * full.steps.double().mean() + 2


@pytest.mark.parametrize("dim", [1, 16, 17, 64, 100, 128, 256])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("make", [make_affine, make_gated], ids=["affine", "gated"])
def test_products_of_changes_where_the_plan_would_not_have_them(backend, device, make, solver, dim):
    if backend == "cpu":
        pytest.skip("about plans of GPU kernels")
    case = make(300, dim)
    with use_plan(case.op, backend=backend, mixed=True):
        check(backend, device, case, tail(SOLVERS[solver], mixed=True))


@pytest.mark.parametrize("dim", [1, 17, 64, 128, 512])
@pytest.mark.parametrize("make", [make_gated, lambda rows, dim: make_mlp(rows, dim, dim + 3)], ids=["gated", "mlp"])
@pytest.mark.parametrize("mixed", [False, True], ids=["full", "mixed"])
def test_states_of_other_cells(backend, device, make, dim, mixed):
    check(backend, device, make(40, dim), tail(AUTO, mixed=mixed))


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 2113, 20000])
@pytest.mark.parametrize("solver", SOLVERS)
def test_batches(backend, device, rows, solver):
    case, options = make_affine(rows, 24), tail(SOLVERS[solver])
    if rows:
        check(backend, device, case, options)
    else:
        need_for(backend, case, device, torch.float32, options)
        assert solve(backend, case, on(case, device), options).z.shape == (0, 24)


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_leave_and_others_take_their_place(backend, device, solver):
    """Rows that need very different numbers of steps, many more of them than there are places."""
    case, options = make_affine(9000, 20), tail(SOLVERS[solver], trace=True)
    case.tensors[1][::3] *= 20  # saturated: quick
    need_for(backend, case, device, torch.float32, options)
    got, want = solve(backend, case, on(case, device), options), fixed_point(case, torch.float32)
    assert relative(got.z, want.z) <= CLOSE[torch.float32]
    assert got.steps.float().std() > 1
    taken = torch.arange(1, options.max_steps + 1, device=got.steps.device)[:, None] <= got.steps
    assert torch.equal(got.trace.isnan(), ~taken)


@pytest.mark.parametrize("solver", SOLVERS)
def test_broken_rows_end_alone(backend, device, solver):
    case, options = make_affine(50, 20), tail(SOLVERS[solver])
    need_for(backend, case, device, torch.float32, options)
    tensors = on(case, device)
    clean = solve(backend, case, tensors, options)
    tensors[1][7, 3], tensors[0][31, 0] = torch.nan, torch.inf
    got = solve(backend, case, tensors, options)
    whole = torch.tensor([row for row in range(50) if row not in (7, 31)], device=device)
    for a, b in zip(got[:4], clean[:4], strict=True):
        assert same_bits(a[whole], b[whole])
    assert (got.status[[7, 31]] == Status.NONFINITE).all()


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("max_steps", [1, 2, 5])
def test_the_value_belongs_to_its_residual(backend, device, keep_best, max_steps):
    case = make_affine(40, 30)
    options = tail(ANDERSON, rtol=0.0, max_steps=max_steps, keep_best=keep_best)
    need_for(backend, case, device, torch.float32, options)
    got = solve(backend, case, on(case, device), options)
    z = got.z.cpu().double()
    f = case.f(z)
    torch.testing.assert_close(got.residual.cpu().double(), (f - z).norm(dim=1) / f.norm(dim=1), rtol=1e-3, atol=1e-6)
    assert (got.steps <= max_steps).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dim", [16, 48])
def test_a_hundred_thousand_problems_against_the_cpu(backend, device, solver, dim):
    """Each must be solved as float64 understands it, in as many steps as the CPU kernel takes, give or take one."""
    case, options = make_affine(100_000, dim), tail(SOLVERS[solver])
    need_for(backend, case, device, torch.float32, options)
    got = solve(backend, case, on(case, device), options)
    assert (got.status == Status.CONVERGED).all()
    z = got.z.double().cpu()
    f = case.f(z)
    assert ((f - z).norm(dim=1) / f.norm(dim=1)).max() <= 1.05 * options.rtol + 1e-6
    if not ak.backends.available()["cpu"]:
        pytest.skip("the steps cannot be compared: the compiled CPU kernels are not built")
    on_cpu = solve("cpu", case, on(case, torch.device("cpu")), options)
    torch.testing.assert_close(got.z.cpu(), on_cpu.z, rtol=0, atol=2e-4)
    if solver != "auto":  # whose choice follows from each backend's own costs
        assert ((got.steps.cpu() - on_cpu.steps).abs() <= 1).float().mean() > 0.999


def test_strides(backend, device):
    """Tensors that are views: transposed weights, expanded rows, every second column."""
    case, options = make_affine(20, 24), tail(PICARD)
    need_for(backend, case, device, torch.float32, options)
    z0, u, weight, leak, scale = on(case, device)
    want = solve(backend, case, [z0, u, weight, leak, scale], options)
    wide = torch.zeros(20, 48, device=device)
    wide[:, ::2] = u
    got = solve(backend, case, [z0[:1].expand(20, 24), wide[:, ::2], weight.T.contiguous().T, leak, scale], options)
    one = solve(backend, case, rows_of(case, [z0[:1].repeat(20, 1), u, weight, leak, scale], slice(None)), options)
    for a, b in zip(got[:4], one[:4], strict=True):
        assert same_bits(a, b)
    assert relative(got.z, want.z) < 1e-4
