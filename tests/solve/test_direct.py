"""The way past torch's dispatcher: the operator's own results, and the dispatcher wherever somebody watches it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import attractor_kernels as ak
from attractor_kernels.solve import direct
from attractor_kernels.solve.bound import BoundCell
from attractor_kernels.solve.run import operator_arguments
from attractor_kernels.solve.spec import make_spec

_direct = pytest.importorskip("attractor_kernels._direct")


def spec_of(**changes: Any) -> Any:
    options = {
        "solver": ak.Auto(),
        "gradient": ak.Implicit(),
        "rtol": 1e-5,
        "atol": 0.0,
        "max_steps": 50,
        "min_steps": 0,
        "batch_ndim": 1,
        "mixing_ndim": None,
        "keep": "last",
        "trace": False,
        "precision": "full",
        "backend": "auto",
    }
    return make_spec(*{**options, **changes}.values())


def bound_cell(rows: int, dim: int, dtype: torch.dtype = torch.float32, leak: bool = False) -> BoundCell:
    torch.manual_seed(dim)
    cell = ak.nn.AffineCell(dim, 3, activation="tanh", leak=0.2 if leak else None, dtype=dtype)
    with torch.no_grad():
        return cell.bind(torch.randn(rows, 3, dtype=dtype))


def by_operator(bound: BoundCell, z0: Tensor, spec: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(torch.ops.attractor_kernels.solve_affine(*operator_arguments(bound, z0, spec)))


def direct_result(bound: BoundCell, z0: Tensor, spec: Any) -> tuple[Tensor, ...] | None:
    solved = direct.run_directly(bound, z0, spec.tail)
    if solved is None:
        return None
    z, info = solved
    return z, info.steps, info.residual, info.status


@pytest.mark.parametrize("precision", ["full", "mixed"])
@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "dim"), [(0, 4), (1, 1), (1, 64), (7, 33), (300, 32), (64, 128)])
def test_as_the_operator(rows: int, dim: int, dtype: torch.dtype, leak: bool, precision: str) -> None:
    bound = bound_cell(rows, dim, dtype, leak)
    z0 = torch.randn(rows, dim, dtype=dtype)
    for solver in (ak.Auto(), ak.Picard(0.9), ak.Anderson(3)):
        for keep in ("last", "best"):
            spec = spec_of(solver=solver, keep=keep, precision=precision, atol=1e-7, min_steps=2)
            got = direct_result(bound, z0, spec)
            assert got is not None
            for part, expected in zip(got, by_operator(bound, z0, spec), strict=False):
                assert part.dtype == expected.dtype and torch.equal(part, expected)


def test_weights_of_any_strides() -> None:
    bound = bound_cell(5, 24)
    weight = bound.held[1]
    other = torch.empty(24, 48).t()[::2].copy_(weight.detach())  # strides 2 and 24
    turned = BoundCell("solve_affine", 24, (bound.held[0], other, *bound.held[2:]), bound.constants)
    z0, spec = torch.zeros(5, 24), spec_of()
    one, two = direct_result(bound, z0, spec), direct_result(turned, z0, spec)
    assert one is not None and two is not None
    assert all(map(torch.equal, one, two))


def test_strides_of_the_result() -> None:
    bound, spec = bound_cell(1, 8), spec_of()
    z0 = torch.zeros(3, 9, 8)[:1, 0]  # contiguous, with strides 72 and 1
    got = direct_result(bound, z0, spec)
    assert got is not None and got[0].stride() == by_operator(bound, z0, spec)[0].stride()


def test_a_scale() -> None:
    bound = _replace(bound_cell(5, 24), scale=torch.rand(5, 24))
    z0, spec = torch.zeros(5, 24), spec_of()
    got = direct_result(bound, z0, spec)
    assert got is not None
    assert all(map(torch.equal, got, by_operator(bound, z0, spec)))


def test_the_front_door_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    solve = _direct.solve_affine
    monkeypatch.setattr(direct._direct, "solve_affine", lambda *args: calls.append(solve(*args)))
    bound = bound_cell(2, 8)
    with torch.no_grad():
        _, info = ak.fixed_point(bound, torch.zeros(2, 8))
    assert len(calls) == 1 and info.backend == "cpu"
    info.raise_if_failed()
    assert info.converged.tolist() == [True, True]


def test_info_survives_copies() -> None:
    bound = bound_cell(3, 8)
    with torch.no_grad():
        _, info = ak.fixed_point(bound, torch.zeros(3, 8))
    twins = [copy.copy(info), copy.deepcopy(info), pickle.loads(pickle.dumps(info))]
    for twin in twins:
        assert torch.equal(twin.steps, info.steps) and torch.equal(twin.residual, info.residual)
        assert repr(twin) == repr(info) == "SolveInfo(batch=(3,), backend='cpu')"


def test_info_read_in_a_mode_is_whole_afterwards() -> None:
    bound = bound_cell(3, 8)
    with torch.no_grad():
        _, info = ak.fixed_point(bound, torch.zeros(3, 8))
    expected = info.residual.tolist()
    with torch.inference_mode():
        assert info.residual.tolist() == expected
    torch.func.grad(lambda x: (x * info.residual).sum())(torch.ones(3))
    factor = torch.ones(3, requires_grad=True)
    (factor * info.residual).sum().backward()
    assert factor.grad is not None and factor.grad.tolist() == expected
    assert type(info.residual) is Tensor and pickle.loads(pickle.dumps(info)).residual.tolist() == expected


class _SeesOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_modes_and_profilers_see_the_operator() -> None:
    bound, z0, spec = bound_cell(2, 8), torch.zeros(2, 8), spec_of()
    with torch.no_grad(), _SeesOperators() as mode:
        assert direct.run_directly(bound, z0, spec.tail) is None
        ak.fixed_point(bound, z0)
    assert "attractor_kernels::solve_affine" in mode.seen
    with torch.no_grad(), torch.profiler.profile() as profile:
        ak.fixed_point(bound, z0)
    assert any(event.key == "attractor_kernels::solve_affine" for event in profile.key_averages())

    class Functions(TorchFunctionMode):
        pass

    with Functions():
        assert direct.run_directly(bound, z0, spec.tail) is None
    assert direct.run_directly(bound, z0, spec.tail) is not None


class _Tagged(Tensor):
    pass


def _replace(bound: BoundCell, **held: Tensor) -> BoundCell:
    names = ("u", "weight", "leak", "scale")
    return BoundCell(
        bound.name,
        bound.shape[-1],
        tuple(held.get(n, t) for n, t in zip(names, bound.held, strict=True)),
        bound.constants,
    )


UNUSUAL: dict[str, Callable[[BoundCell, Tensor], tuple[BoundCell, Tensor]]] = {
    "a start that is not contiguous": lambda b, z: (b, torch.zeros(8, 2).t()),
    "an input that is not contiguous": lambda b, z: (_replace(b, u=b.held[0].t().contiguous().t()), z),
    "a subclass": lambda b, z: (b, z.as_subclass(_Tagged)),
    "a weight of a subclass": lambda b, z: (_replace(b, weight=b.held[1].detach().as_subclass(_Tagged)), z),
    "half precision": lambda b, z: (bound_cell(2, 8, torch.bfloat16), z.bfloat16()),
    "a weight of another shape": lambda b, z: (_replace(b, weight=torch.zeros(8, 9)), z),
    "a weight of another dtype": lambda b, z: (_replace(b, weight=torch.zeros(8, 8, dtype=torch.float64)), z),
    "an input of another size": lambda b, z: (_replace(b, u=torch.zeros(2, 5)), z),
    "a negated view": lambda b, z: (_replace(b, weight=torch.zeros(8, 8, dtype=torch.complex64).conj().imag), z),
    "a negated start": lambda b, z: (b, torch.ones(2, 8, dtype=torch.complex64).conj().imag),
    "zeros by name": lambda b, z: (_replace(b, u=torch._efficientzerotensor(2, 8)), z),
    "a sparse weight": lambda b, z: (_replace(b, weight=b.held[1].detach().to_sparse()), z),
    "a start for MKL-DNN": lambda b, z: (b, z.to_mkldnn()),
    "a functional tensor": lambda b, z: (b, torch._to_functional_tensor(z)),
    "a scale of another shape": lambda b, z: (_replace(b, scale=torch.ones(2, 9)), z),
    "a leak of another shape": lambda b, z: (_replace(b, leak=torch.zeros(9)), z),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_what_it_leaves_to_the_operator(case: str) -> None:
    bound, z0 = UNUSUAL[case](bound_cell(2, 8), torch.zeros(2, 8))
    assert direct.run_directly(bound, z0, spec_of().tail) is None


def test_a_trace_is_left_to_the_operator() -> None:
    bound, z0 = bound_cell(2, 8), torch.zeros(2, 8)
    assert direct.run_directly(bound, z0, spec_of(trace=True).tail) is None
    with torch.no_grad():
        _, info = ak.fixed_point(bound, z0, trace=True)
    assert info.trace is not None and info.trace.shape == (50, 2)


@pytest.mark.parametrize("arguments", [(), (1,) * 17, ((1,) * 10, *(1,) * 16)])
def test_raw_calls_of_another_form(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="a tail of 11 and 16 more"):
        _direct.solve_affine(*arguments)


def test_raw_calls_with_arguments_of_another_type() -> None:
    with pytest.raises(TypeError):
        _direct.solve_affine((0, 1, 1.0, 0.0, 1e-5, 0.0, 5, 0, False, False, False), False, "rows", *(0,) * 14)
