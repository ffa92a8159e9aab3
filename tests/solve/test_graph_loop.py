"""The loop recorded whole: on a tape, which mirrors a CUDA graph on the CPU, and on a device where there is one."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from tape import TapeRecorder
from torch import Tensor, nn

import attractor_kernels as ak
from attractor_kernels.solve import graph_loop
from attractor_kernels.solve.graph_loop import FIRST, MOST_KINDS, GraphLoops

SOLVERS = [ak.Picard(), ak.Picard(0.7), ak.Anderson(), ak.Anderson(2, 0.8), ak.Auto()]

needs_kernels = pytest.mark.skipif(not ak.backends.available()["cpu"], reason="needs the compiled kernels")


class Net(nn.Module):
    def __init__(self, size: int = 6, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size, dtype=dtype)
        nn.init.orthogonal_(self.linear.weight, 0.7)
        self.gain = 1.0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.gain * self.linear(z) + x)


@pytest.fixture
def recorder(monkeypatch) -> TapeRecorder:
    recorder = TapeRecorder()
    monkeypatch.setattr(graph_loop, "LOOPS", GraphLoops(recorder))
    return recorder


def twins(module: nn.Module, **options) -> tuple[ak.nn.FixedPoint, ak.nn.FixedPoint]:
    """A layer whose solves are recorded where that can be, and the same driven from the host."""
    options = {"rtol": 1e-8, "max_steps": 100, **options}
    return ak.nn.FixedPoint(module, **options), ak.nn.FixedPoint(copy.deepcopy(module), graph=False, **options)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def assert_same_solve(layer: ak.nn.FixedPoint, plain: ak.nn.FixedPoint, *given: Tensor) -> None:
    z, expected = layer(*given), plain(*given)
    assert torch.equal(z, expected)
    for name in ("steps", "residual", "status"):
        assert torch.equal(getattr(layer.info, name), getattr(plain.info, name)), name
    if plain.info.trace is not None:
        torch.testing.assert_close(layer.info.trace, plain.info.trace, rtol=0, atol=0, equal_nan=True)


@needs_kernels
class TestForward:
    @pytest.mark.parametrize("solver", SOLVERS, ids=str)
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"mixing_ndim": 2, "trace": True},
            {"keep": "best", "max_steps": 7},
            {"rtol": 0.0, "max_steps": 1},
            {"rtol": 0.0, "max_steps": 4},
            {"batch_ndim": 0},
            {"batch_ndim": 2, "min_steps": 5, "trace": True},
        ],
        ids=str,
    )
    def test_gives_the_bits_of_the_host_loop(self, recorder, solver, options):
        layer, plain = twins(Net(), solver=solver, **options)
        with torch.no_grad():
            for turn in range(4):
                assert_same_solve(layer, plain, inputs(4, 3, 6), inputs(4, 3, 6))
                assert layer.info.backend == (f"cpu (host loop: {FIRST})" if turn == 0 else "cpu")
                assert plain.info.backend == "cpu (host loop: the map cannot be recorded: graph=False)"
        [recording] = recorder.recordings
        assert len(recording.rounds) == 3

    def test_a_body_is_two_steps(self, recorder):
        layer, _ = twins(Net(), rtol=0.0, max_steps=7)
        with torch.no_grad():
            for _ in range(2):
                layer(inputs(2, 6))
        assert recorder.recordings[0].rounds == [4]

    def test_problems_end_on_their_own(self, recorder):
        class Rates(nn.Module):
            def forward(self, z, x):
                return x * z + 1

        layer, plain = twins(Rates(), solver=ak.Picard(), max_steps=900)
        rates = torch.tensor([0.1, 0.5, 0.9, 0.97]).double()[:, None].expand(4, 3)
        with torch.no_grad():
            for x in (rates, rates.flip(0), rates):
                assert_same_solve(layer, plain, x, torch.zeros(4, 3).double())
        assert len(set(layer.info.steps.tolist())) == 4

    def test_failures_are_reported_alike(self, recorder):
        layer, plain = twins(Net(), solver=ak.Anderson())
        with torch.no_grad():
            for value in (0.0, torch.nan, torch.inf, 1e300):
                x = inputs(3, 6)
                x[1, 2] = value
                z, expected = layer(x), plain(x)
                torch.testing.assert_close(z, expected, rtol=0, atol=0, equal_nan=True)
                assert torch.equal(layer.info.status, plain.info.status)
        assert len(recorder.recordings) == 1

    def test_results_outlive_the_next_solve(self, recorder):
        layer, _ = twins(Net(), trace=True)
        with torch.no_grad():
            layer(inputs(4, 6))
            z = layer(inputs(4, 6))
            info = layer.info
            kept = [t.clone() for t in (z, info.steps, info.residual, info.status, info.trace)]
            layer(100 * inputs(4, 6))
        for was, tensor in zip(kept, (z, info.steps, info.residual, info.status, info.trace), strict=True):
            torch.testing.assert_close(tensor, was, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize(
        "output",
        [lambda z, x: z, lambda z, x: z.view_as(z), lambda z, x: x, lambda z, x: z.mT.contiguous().mT],
        ids=["itself", "view", "constant", "transposed"],
    )
    def test_outputs_of_any_kind(self, recorder, output):
        class Odd(nn.Module):
            def forward(self, z, x):
                return output(z, x)

        layer, plain = twins(Odd())
        with torch.no_grad():
            for _ in range(3):
                assert_same_solve(layer, plain, inputs(4, 6), inputs(4, 6))
        assert layer.info.backend == "cpu"

    def test_inputs_of_any_layout(self, recorder):
        layer, plain = twins(Net())
        with torch.no_grad():
            for make in (lambda: inputs(6, 4).mT, lambda: inputs(1, 6).expand(4, 6), lambda: inputs(4, 12)[:, ::2]):
                for _ in range(2):
                    assert_same_solve(layer, plain, make(), make())
        assert len(recorder.recordings) == 3

    def test_inference_mode_has_recordings_of_its_own(self, recorder):
        layer, plain = twins(Net())
        for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
            for _ in range(2):
                with mode():
                    assert_same_solve(layer, plain, inputs(4, 6))
        assert len(recorder.recordings) == 2

    def test_an_empty_batch(self, recorder):
        layer, _ = twins(Net())
        for _ in range(3):
            assert layer(inputs(0, 6)).shape == (0, 6)
        assert not recorder.recordings

    def test_autocast(self, recorder):
        class Cast(Net):
            def forward(self, z, x):
                return super().forward(z, x).float()

        layer, plain = twins(Cast(dtype=torch.float32), rtol=1e-2)
        for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
            for _ in range(2):
                with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
                    layer.module(inputs(4, 6).float(), inputs(4, 6).float())  # leaves a cast weight in the cache
                    assert_same_solve(layer, plain, inputs(4, 6).float())
        with torch.no_grad():
            assert_same_solve(layer, plain, inputs(4, 6).float())
        assert layer.info.backend == f"cpu (host loop: {FIRST})"
        assert len(recorder.recordings) == 2


@needs_kernels
class TestBackward:
    @pytest.mark.parametrize("solver", SOLVERS, ids=str)
    @pytest.mark.parametrize("adjoint", [ak.Implicit(), ak.Implicit(solver=ak.Picard(), max_steps=81)], ids=str)
    def test_training_gives_the_bits_of_the_host_loop(self, recorder, solver, adjoint):
        layer, plain = twins(Net(), solver=solver, gradient=adjoint)
        optimizers = [torch.optim.Adam(one.parameters(), lr=1e-2) for one in (layer, plain)]
        for step in range(5):
            given, target = inputs(4, 6), inputs(4, 6)
            grads = []
            for one, optimizer in zip((layer, plain), optimizers, strict=True):
                x = given.clone().requires_grad_()
                optimizer.zero_grad()
                ((one(x) - target) ** 2).sum().backward()
                grads.append(x.grad)
                optimizer.step()
            assert torch.equal(*grads)
            for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
                assert torch.equal(p, q) and torch.equal(p.grad, q.grad)
            assert torch.equal(layer.info.adjoint.steps, plain.info.adjoint.steps)
            assert layer.info.adjoint.backend == ("cpu" if step else f"cpu (host loop: {FIRST})")
        assert [len(recording.rounds) for recording in recorder.recordings] == [4, 4]

    def test_several_solves_before_their_backwards(self, recorder):
        layer, plain = twins(Net())
        for _ in range(3):
            given = [inputs(4, 6) for _ in range(3)]
            for one in (layer, plain):
                one.zero_grad()
                sum((one(x) ** 2).sum() for x in given).backward()
            for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
                assert torch.equal(p.grad, q.grad)

    def test_a_map_that_ignores_its_argument(self, recorder):
        class Constant(Net):
            def forward(self, z, x):
                return self.linear(x)

        layer, plain = twins(Constant())
        for _ in range(3):
            x = inputs(4, 6)
            for one in (layer, plain):
                one.zero_grad()
                one(x).sum().backward()
            assert torch.equal(layer.module.linear.weight.grad, plain.module.linear.weight.grad)

    def test_autocast_of_the_forward_pass(self, recorder):
        class Cast(Net):
            def forward(self, z, x):
                return super().forward(z, x).float()

        layer, plain = twins(Cast(dtype=torch.float32), rtol=1e-2)
        for _ in range(3):
            x = inputs(4, 6).float()
            for one in (layer, plain):
                one.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    z = one(x)
                z.sum().backward()
            torch.testing.assert_close(
                layer.module.linear.weight.grad, plain.module.linear.weight.grad, rtol=2e-2, atol=2e-2
            )
        assert layer.info.adjoint.backend == "cpu"

    def test_a_module_changed_before_the_backward_pass(self, recorder):
        layer, plain = twins(Net())
        for turn in range(3):
            x = inputs(4, 6)
            for one in (layer, plain):
                one.zero_grad()
                z = one(x)
                one.module.gain = 0.5
                z.sum().backward()
                one.module.gain = 1.0
            assert torch.equal(layer.module.linear.weight.grad, plain.module.linear.weight.grad), turn
            assert "changed between the forward and the backward pass" in layer.info.adjoint.backend

    @pytest.mark.parametrize(
        "gradient", [ak.OneStep(), ak.Phantom(2), ak.Neumann(2), ak.Unrolled(), ak.Unrolled(last=2)], ids=str
    )
    def test_other_gradients(self, recorder, gradient):
        layer, plain = twins(Net(), gradient=gradient)
        for _ in range(3):
            x = inputs(4, 6)
            for one in (layer, plain):
                one.zero_grad()
                one(x).sum().backward()
            assert torch.equal(layer.module.linear.weight.grad, plain.module.linear.weight.grad)

    def test_second_derivatives(self, recorder):
        layer, _ = twins(Net(3), rtol=1e-12, max_steps=300)
        x = inputs(2, 3).requires_grad_()
        assert torch.autograd.gradcheck(layer, (x,))
        assert torch.autograd.gradgradcheck(layer, (x,))
        assert len(recorder.recordings) == 2


@needs_kernels
class TestKinds:
    def solve(self, layer: ak.nn.FixedPoint, times: int = 2) -> str:
        with torch.no_grad():
            for _ in range(times):
                x = inputs(4, 6)
                z = layer(x)
                torch.testing.assert_close(layer.module(z, x), z, rtol=1e-6, atol=1e-6)
        return layer.info.backend

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: setattr(m.linear, "weight", nn.Parameter(0.5 * m.linear.weight)),
            lambda m: setattr(m.linear.weight, "data", 0.5 * m.linear.weight.data),
            lambda m: setattr(m, "linear", copy.deepcopy(m.linear).requires_grad_(False).mul(0.5)),
            lambda m: setattr(m, "gain", 0.5),
            lambda m: setattr(m, "gain", torch.float16),
            lambda m: setattr(m, "note", object()),
            lambda m: setattr(m, "note", [1, {"a": (2.0, None)}]),
            lambda m: m.eval(),
            lambda m: torch.set_float32_matmul_precision("medium"),
            lambda m: torch.set_default_dtype(torch.float64),
        ],
        ids=["parameter", "memory", "module", "number", "value", "object", "list", "mode", "precision", "default"],
    )
    def test_what_is_recorded_anew(self, recorder, change):
        class Scaled(nn.Linear):
            def mul(self, factor):
                self.weight.mul_(factor)
                return self

        net = Net()
        scaled = Scaled(6, 6, dtype=torch.float64)
        scaled.load_state_dict(net.linear.state_dict())
        net.linear = scaled
        net.forward = lambda z, x, net=weakref.ref(net): (
            torch.tanh(net().linear(z) * (net().gain if isinstance(net().gain, float) else 1.0) + x)
        )
        layer, _ = twins_of(net)
        assert self.solve(layer) == "cpu" and len(recorder.recordings) == 1
        assert self.solve(layer) == "cpu" and len(recorder.recordings) == 1
        change(net)
        assert self.solve(layer, 1) == f"cpu (host loop: {FIRST})"
        assert self.solve(layer) == "cpu" and len(recorder.recordings) == 2

    def test_values_of_parameters_and_buffers_are_read_anew(self, recorder):
        class Buffered(Net):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.ones(6).double())

            def forward(self, z, x):
                return self.scale * super().forward(z, x)

        layer, _ = twins_of(Buffered())
        self.solve(layer)
        with torch.no_grad():
            layer.module.linear.weight.mul_(0.5)
            layer.module.scale.mul_(0.7)
        assert self.solve(layer) == "cpu" and len(recorder.recordings) == 1

    def test_an_object_at_a_dead_ones_address_is_another(self):
        class Thing:
            pass

        from attractor_kernels.solve.examine import _mark

        thing = Thing()
        mark = _mark(thing)
        assert mark == _mark(thing) and mark != _mark(Thing())
        del thing
        assert mark != mark.__class__(Thing()) and mark != mark

    def test_their_number_is_bounded(self, recorder):
        layer, _ = twins_of(Net())
        with torch.no_grad():
            for batch in range(1, 3 * MOST_KINDS):
                for _ in range(2):
                    layer(inputs(batch, 6))
        gc.collect()
        [kinds] = graph_loop.LOOPS._kinds.values()
        assert len(kinds) == MOST_KINDS
        # The one used last is the last to go.
        with torch.no_grad():
            layer(inputs(3 * MOST_KINDS - 1, 6))
        assert layer.info.backend == "cpu"
        with torch.no_grad():
            layer(inputs(1, 6))
        assert FIRST in layer.info.backend

    def test_a_module_that_is_gone_takes_its_recordings_along(self, recorder):
        layer, _ = twins_of(Net())
        for _ in range(2):
            layer(inputs(4, 6)).sum().backward()
        gone = [weakref.ref(recording) for recording in recorder.recordings]
        assert len(gone) == 2
        recorder.recordings.clear()
        del layer
        gc.collect()
        assert not graph_loop.LOOPS._kinds and all(one() is None for one in gone)

    def test_layers_of_one_module_do_not_mix_their_options(self, recorder):
        net = Net()
        loose, tight = ak.nn.FixedPoint(net, rtol=1e-2), ak.nn.FixedPoint(net, rtol=1e-10, max_steps=200)
        x = inputs(4, 6)
        with torch.no_grad():
            for _ in range(3):
                for layer in (loose, tight):
                    layer(x)
        assert bool((loose.info.steps < tight.info.steps).all())
        assert len(recorder.recordings) == 2

    def test_copies_of_a_layer(self, recorder):
        layer, _ = twins_of(Net())
        self.solve(layer)
        other = copy.deepcopy(layer)
        assert FIRST in self.solve(other, 1)
        assert self.solve(other) == "cpu"


def twins_of(module: nn.Module) -> tuple[ak.nn.FixedPoint, ak.nn.FixedPoint]:
    return ak.nn.FixedPoint(module, rtol=1e-8, max_steps=100), ak.nn.FixedPoint(module, graph=False)


class Dropping(Net):
    def forward(self, z, x):
        return torch.dropout(super().forward(z, x), 0.5, self.training)


class Counting(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1).double())

    def forward(self, z, x):
        self.count += 1
        return super().forward(z, x)


class Deciding(Net):
    def forward(self, z, x):
        return super().forward(z, x) if float(z.detach().abs().max()) < 1e9 else z


class Selecting(Net):
    def forward(self, z, x):
        fz = super().forward(z, x)
        return fz.index_put(torch.where(fz > 0.5), torch.tensor(0.5).double())


class Told(Net):
    def forward(self, z, x):
        return super().forward(z, x) + self.held

    held = torch.ones(6).double()


class Keeping(Net):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, z, x):
        self.seen.append(z)
        del self.seen[:-1]
        return super().forward(z, x)


class Nested(Net):
    def __init__(self):
        super().__init__()
        self.inner = ak.nn.FixedPoint(Net(), rtol=1e-10)

    def forward(self, z, x):
        return 0.5 * super().forward(z, x) + 0.1 * self.inner(x)


class Travelling(Net):
    def forward(self, z, x):
        return super().forward(z, x) + 0 * x.to("meta").sum().shape.numel()


class Generating(Net):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, z, x):
        return super().forward(z, x) + 0 * torch.rand(6, dtype=torch.float64, generator=self.generator)


def hooked() -> nn.Module:
    net = Net()
    net.linear.register_forward_hook(lambda module, given, out: None)
    return net


def compiled() -> nn.Module:
    net = Net()
    net.linear.compile(backend="eager")
    return net


@needs_kernels
class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (Dropping, "it draws random numbers"),
            (Counting, "it changes a parameter, a buffer or its input in place"),
            (Deciding, "its operations depend on data"),
            (Selecting, "its operations depend on data"),
            (Told, "it uses a tensor of shape [6] that is neither its input nor"),
            (Keeping, "it keeps its argument"),
            (Nested, "it solves for a fixed point itself"),
            (Travelling, "it moves data between devices"),
            (hooked, "its Linear has hooks"),
            (compiled, "it is compiled"),
        ],
    )
    def test_what_is_not_recorded(self, recorder, make, reason):
        layer, plain = twins(make())
        for _ in range(3):
            x = inputs(4, 6)
            torch.manual_seed(1)
            z = layer(x)
            assert layer.info.backend.startswith(f"cpu (host loop: the map cannot be recorded: {reason}")
            torch.manual_seed(1)
            assert torch.equal(z, plain(x))
            z.sum().backward()
            assert reason in layer.info.adjoint.backend
        assert not [r for r in recorder.recordings if len(r.rounds) and make is not Nested]

    def test_dropout_is_recorded_in_evaluation(self, recorder):
        layer, plain = twins(Dropping().eval())
        with torch.no_grad():
            for _ in range(3):
                assert_same_solve(layer, plain, inputs(4, 6))
        assert layer.info.backend == "cpu"
        layer.train()
        with torch.no_grad():
            layer(inputs(4, 6))
        assert "random" in layer.info.backend

    def test_a_recording_that_fails_is_not_tried_again(self, recorder, monkeypatch):
        layer, plain = twins(Generating())
        tries = []
        record = recorder.record
        monkeypatch.setattr(recorder, "record", lambda *a: tries.append(None) or record(*a))
        with torch.no_grad():
            for turn in range(4):
                assert_same_solve(layer, plain, inputs(4, 6))
                expected = "RuntimeError: aten.rand.generator draws random numbers" if turn else FIRST
                assert expected in layer.info.backend
        assert len(tries) == 1 and not recorder.recordings
        layer(inputs(4, 6)).sum().backward()
        assert "RuntimeError" in layer.info.adjoint.backend

    def test_errors_of_the_map_are_raised(self, recorder):
        class Failing(Net):
            fails = True

            def forward(self, z, x):
                if self.fails:
                    raise OverflowError("too much")
                return super().forward(z, x)

        layer, _ = twins(Failing())
        for _ in range(2):
            with pytest.raises(OverflowError, match="too much"):
                layer(inputs(4, 6))
        layer.module.fails = False
        with torch.no_grad():
            for _ in range(2):
                layer(inputs(4, 6))
        assert layer.info.backend == "cpu"

    def test_modes_and_hooks_of_torch(self, recorder):
        from torch.overrides import BaseTorchFunctionMode
        from torch.utils.flop_counter import FlopCounterMode

        layer, _ = twins(Net())
        with torch.no_grad():
            for _ in range(2):
                layer(inputs(4, 6))
            with FlopCounterMode(display=False) as counter:
                layer(inputs(4, 6))
            assert "dispatch mode" in layer.info.backend
            assert counter.get_total_flops() >= int(layer.info.steps.max()) * 2 * 4 * 6 * 6
            with BaseTorchFunctionMode():
                layer(inputs(4, 6))
            assert "function mode" in layer.info.backend
            with nn.modules.module.register_module_forward_hook(lambda *_: None):
                layer(inputs(4, 6))
            assert "global hooks" in layer.info.backend
            with torch.device("cpu"):
                layer(inputs(4, 6))
            assert layer.info.backend == "cpu"

    def test_only_layers_are_recorded(self, recorder):
        net, x = Net(), inputs(4, 6)
        for _ in range(3):
            _, info = ak.fixed_point(lambda z: net(z, x), torch.zeros_like(x))
            assert info.backend == "cpu (host loop: f is not the module of a FixedPoint layer)"

    def test_a_device_that_cannot(self, recorder):
        recorder.absent = "this build has no CUDA kernels"
        layer, _ = twins(Net())
        for _ in range(3):
            layer(inputs(4, 6))
            assert layer.info.backend == "cpu (host loop: this build has no CUDA kernels)"

    def test_a_stream_that_somebody_captures(self, recorder):
        layer, plain = twins(Net())
        x = inputs(4, 6)
        recorder.others_record = True
        with torch.no_grad():
            z = layer(x)
            recorder.others_record = False
            assert torch.equal(z, plain(x)) and torch.equal(layer.info.steps, plain.info.steps)
        assert layer.info.backend == "cpu (all steps: the stream is being captured)"

    def test_cells_have_their_own_kernels(self, recorder):
        layer = ak.nn.FixedPoint(ak.nn.AffineCell(6, 6))
        for _ in range(2):
            layer(torch.randn(4, 6))
            assert layer.info.backend == "cpu"
        assert not recorder.recordings

    def test_the_switch_is_checked(self):
        with pytest.raises(TypeError, match="graph"):
            ak.nn.FixedPoint(Net(), graph="no")
