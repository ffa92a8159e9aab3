"""The loop for maps the package does not know, on the compiled step: what f may do, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import attractor_kernels as ak
from attractor_kernels.ops import step_buffers

pytestmark = pytest.mark.skipif(not ak.backends.available()["cpu"], reason="needs the compiled kernels")

SOLVERS = [ak.Picard(), ak.Picard(0.7), ak.Anderson(), ak.Anderson(2, 0.8), ak.Auto()]


def tanh_map(dtype: torch.dtype = torch.float64, *shape: int):
    generator = torch.Generator().manual_seed(1)
    size = shape[-1]
    w = torch.randn(size, size, generator=generator, dtype=torch.float64)
    w = (0.9 * w / torch.linalg.matrix_norm(w, 2)).to(dtype)
    u = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return lambda z: torch.tanh(z @ w + u)


def solve(f, z0: Tensor, **options):
    options = {"rtol": 1e-8, "max_steps": 100, "backend": "cpu", **options}
    with torch.no_grad():
        return ak.fixed_point(f, z0, **options)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("mixing_ndim", [None, 2])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_agrees_with_the_reference(solver, mixing_ndim, dtype, rtol):
    f = tanh_map(dtype, 4, 3, 20)
    z0 = torch.zeros(4, 3, 20, dtype=dtype)
    options = {"solver": solver, "mixing_ndim": mixing_ndim, "rtol": rtol, "trace": True}
    z, info = solve(f, z0, **options)
    expected, reference = solve(f, z0, **options, backend="reference")
    assert (info.backend, reference.backend) == ("cpu", "reference")
    assert bool(info.converged.all() and reference.converged.all())
    assert int((info.steps - reference.steps).abs().max()) <= 1
    torch.testing.assert_close(z, expected, rtol=0, atol=20 * rtol)
    assert info.trace is not None and info.trace.shape == (100, 4)
    for problem, steps in enumerate(info.steps.tolist()):
        assert info.trace[steps - 1, problem] == info.residual[problem]
        assert bool(info.trace[steps:, problem].isnan().all())
        assert not bool(info.trace[:steps, problem].isnan().any())


def test_f_is_called_once_a_step():
    calls = 0
    f = tanh_map(torch.float64, 5, 8)

    def counted(z):
        nonlocal calls
        calls += 1
        return f(z)

    _, info = solve(counted, torch.zeros(5, 8).double())
    assert calls == int(info.steps.max())
    calls = 0
    z, info = solve(counted, torch.zeros(0, 8).double())
    assert calls == 0 and z.shape == (0, 8) and info.steps.shape == (0,)


def test_two_buffers_hold_the_iterates():
    f = tanh_map(torch.float64, 5, 8)
    places = set()

    def placed(z):
        places.add(z.data_ptr())
        return f(z)

    for solver in SOLVERS:
        places.clear()
        _, info = solve(placed, torch.zeros(5, 8).double(), solver=solver)
        assert int(info.steps.max()) > 5 and len(places) == 2, solver


def test_start_is_left_alone_and_not_returned():
    for z0 in (torch.zeros(4, 6).double(), torch.zeros(6, 4).double().mT, torch.zeros(1, 6).double().expand(4, 6)):
        before = z0.clone()
        z, _ = solve(tanh_map(torch.float64, 4, 6), z0)
        assert torch.equal(z0, before)
        assert z.untyped_storage().data_ptr() != z0.untyped_storage().data_ptr()
        z.fill_(1.0)
        assert torch.equal(z0, before)


@pytest.mark.parametrize(
    "output",
    [
        lambda z: z,
        lambda z: z.view_as(z),
        lambda z: z.detach(),
        lambda z: z.flip(1).flip(1),
        lambda z: torch.stack([z, z])[1],
    ],
    ids=["itself", "view", "detached", "copy", "view of a copy"],
)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_identity_maps(output, solver):
    z0 = torch.randn(4, 6)
    z, info = solve(output, z0, solver=solver)
    assert torch.equal(z, z0) and info.steps.tolist() == [1] * 4 and bool(info.converged.all())


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_outputs_of_any_layout(solver):
    f = tanh_map(torch.float64, 4, 6)
    expected, info = solve(f, torch.zeros(4, 6).double(), solver=solver)
    persistent = torch.empty(4, 6).double()
    layouts = {
        "transposed": lambda z: f(z).mT.contiguous().mT,
        "strided": lambda z: torch.stack([f(z), f(z)], -1)[..., 0],
        "its own buffer": lambda z: persistent.copy_(f(z)),
    }
    for name, layout in layouts.items():
        z, other = solve(layout, torch.zeros(4, 6).double(), solver=solver)
        assert torch.equal(z, expected) and torch.equal(other.steps, info.steps), name
    constant = torch.randn(1, 6).double()
    z, _ = solve(lambda z: constant.expand(4, 6), torch.zeros(4, 6).double(), solver=solver)
    torch.testing.assert_close(z, constant.expand(4, 6))


@pytest.mark.parametrize("keep", [lambda z: z, lambda z: z[1:], lambda z: z.detach(), lambda z: z.flatten()])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_what_f_keeps_stays_as_it_was(keep, solver):
    f = tanh_map(torch.float64, 4, 6)
    expected, info = solve(f, torch.zeros(4, 6).double(), solver=solver)
    kept, copies = [], []

    def keeping(z):
        kept.append(keep(z))
        copies.append(keep(z).clone())
        return f(z)

    z, other = solve(keeping, torch.zeros(4, 6).double(), solver=solver)
    assert torch.equal(z, expected) and torch.equal(other.steps, info.steps)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_graphs_that_f_builds_can_be_used_later():
    f = tanh_map(torch.float64, 3, 5)
    weight = torch.ones(5, dtype=torch.float64, requires_grad=True)
    graphs, states = [], []

    def building(z):
        with torch.enable_grad():
            graphs.append((z * weight).sum())
        states.append(z.clone())
        return f(z)

    solve(building, torch.zeros(3, 5).double())
    for graph, state in zip(graphs, states, strict=True):
        (grad,) = torch.autograd.grad(graph, weight)
        torch.testing.assert_close(grad, state.sum(0))


def test_a_map_that_returns_an_earlier_iterate():
    """fz is then the very buffer the next iterate might go to."""
    start = torch.ones(3, 4, dtype=torch.float64)  # its history has rank one: in float32 rounding decides what is used
    earlier = [start]

    def delayed(z):
        earlier.append(z)
        return earlier[-2]

    for solver in SOLVERS:
        results = []
        for backend in ("cpu", "reference"):
            earlier[:] = [start]
            z, _ = solve(delayed, torch.zeros_like(start), solver=solver, max_steps=4, rtol=0.0, backend=backend)
            results.append(z)
        torch.testing.assert_close(*results)


def test_energy_descent_with_autograd_inside_f():
    target = torch.randn(3, 5, dtype=torch.float64)

    def descend(z):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            energy = ((leaf - target) ** 2).sum() + (leaf**4).sum() / 4
            (grad,) = torch.autograd.grad(energy, leaf)
        return z - 0.1 * grad

    z, info = solve(descend, torch.zeros(3, 5).double(), solver=ak.Anderson())
    assert bool(info.converged.all())
    torch.testing.assert_close(2 * (z - target) + z**3, torch.zeros_like(z), rtol=0, atol=1e-6)


def test_errors_name_what_f_did():
    z0 = torch.zeros(4, 6)
    with pytest.raises(TypeError, match="f must return a Tensor"):
        solve(lambda z: None, z0)
    with pytest.raises(ValueError, match="f must return z's shape"):
        solve(lambda z: z[:2], z0)
    with pytest.raises(TypeError, match="f must return z's dtype"):
        solve(lambda z: z.double(), z0)
    with pytest.raises(ValueError, match="in place"):
        solve(lambda z: z.add_(1), z0)

    class Stop(Exception):
        pass

    def stopping(z):
        raise Stop

    with pytest.raises(Stop):
        solve(stopping, z0)


def test_problems_end_on_their_own():
    rates = torch.tensor([0.1, 0.5, 0.9, 0.97]).double()
    together, info = solve(
        lambda z: rates[:, None] * z + 1, torch.zeros(4, 3).double(), solver=ak.Picard(), max_steps=900
    )
    assert info.steps.tolist() == sorted(set(info.steps.tolist()))
    for row, rate in enumerate(rates):
        alone, one = solve(lambda z, a=rate: a * z + 1, torch.zeros(1, 3).double(), solver=ak.Picard(), max_steps=900)
        assert torch.equal(alone[0], together[row]) and int(one.steps) == int(info.steps[row])


@pytest.mark.parametrize("batch_ndim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 1, 7), (2, 3), (1, 1)])
def test_batch_dimensions(shape, batch_ndim):
    f = tanh_map(torch.float64, *shape)
    z, info = solve(f, torch.zeros(shape).double(), batch_ndim=batch_ndim)
    assert z.shape == shape and info.steps.shape == info.residual.shape == info.status.shape == shape[:batch_ndim]
    assert bool(info.converged.all())


def test_mixing_per_token_keeps_a_causal_map_causal():
    generator = torch.Generator().manual_seed(2)
    w = 0.4 * torch.randn(8, 8, generator=generator, dtype=torch.float64) / 8**0.5
    u = torch.randn(2, 6, 8, generator=generator, dtype=torch.float64)
    other = u.clone()
    other[:, -1] += 1

    def causal(u):
        return lambda z: torch.tanh(z.cumsum(1) / 6 @ w + u)

    options = {"solver": ak.Anderson(), "rtol": 0.0, "max_steps": 12}
    for mixing_ndim, leaks in ((2, False), (1, True)):
        a, b = (solve(causal(v), torch.zeros_like(u), mixing_ndim=mixing_ndim, **options)[0] for v in (u, other))
        assert bool((a[:, :-1] != b[:, :-1]).any()) == leaks


def test_buffers_do_not_grow_with_steps():
    z = torch.zeros(8, 4, 16)
    for solver in (ak.Picard(), ak.Anderson(), ak.Auto()):
        sizes = {
            sum(b.numel() * b.element_size() for b in step_buffers(z, 8, 1, solver, max_steps=m) if b is not None)
            for m in (8, 512)
        }
        assert len(sizes) == 1


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_gradients_of_an_unknown_map(solver):
    w = (0.3 * torch.randn(5, 5, dtype=torch.float64)).requires_grad_()
    u = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def value(w, u):
        z, info = ak.fixed_point(
            lambda z: torch.tanh(z @ w + u),
            torch.zeros(3, 5).double(),
            solver=solver,
            rtol=1e-13,
            max_steps=300,
            backend="cpu",
        )
        assert info.backend == "cpu"
        return z

    assert torch.autograd.gradcheck(value, (w, u))


def test_inference_mode():
    f = tanh_map(torch.float64, 4, 6)
    expected, _ = solve(f, torch.zeros(4, 6).double())
    with torch.inference_mode():
        z, info = ak.fixed_point(f, torch.zeros(4, 6).double(), rtol=1e-8, max_steps=100)
    assert torch.equal(z, expected) and info.backend == "cpu"


def test_what_the_step_cannot_take_runs_in_plain_torch():
    f = tanh_map(torch.float64, 4, 6)
    z0 = torch.zeros(4, 6).double()
    _, info = solve(f, z0, solver=ak.Broyden(), backend="auto")
    assert info.backend == "reference" and bool(info.converged.all())

    class Marked(Tensor):
        pass

    _, info = solve(lambda z: 0.5 * z + 1, torch.zeros(2, 3).as_subclass(Marked), backend="auto")
    assert info.backend == "reference" and bool(info.converged.all())


def test_compiles_without_a_break():
    f = tanh_map(torch.float32, 4, 6)

    def program(z0):
        z, info = ak.fixed_point(f, z0, rtol=1e-4, max_steps=12)
        return z, info.steps

    expected = solve(f, torch.zeros(4, 6), rtol=1e-4, max_steps=12)
    with torch.no_grad():
        z, steps = torch.compile(program, fullgraph=True, backend="aot_eager")(torch.zeros(4, 6))
    torch.testing.assert_close(z, expected[0])
    assert torch.equal(steps, expected[1].steps)
