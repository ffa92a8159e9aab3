"""Which solves are of one kind, and which are not recorded at all."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from layers import Net, assert_same_solve, inputs, needs_kernels, twins
from torch import nn

import attractor_kernels as ak
from attractor_kernels.solve import graph_loop
from attractor_kernels.solve.graph_loop import FIRST, MOST_KINDS


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
            lambda m: setattr(m, "linear", Net().linear),
            lambda m: setattr(m, "gain", 0.5),
            lambda m: setattr(m, "note", object()),
            lambda m: setattr(m, "note", [1, {"a": (2.0, None)}]),
            lambda m: m.eval(),
            lambda m: torch.set_float32_matmul_precision("medium"),
            lambda m: torch.set_default_dtype(torch.float64),
        ],
        ids=["parameter", "memory", "module", "number", "object", "list", "mode", "precision", "default"],
    )
    def test_what_is_recorded_anew(self, recorder, change):
        net = Net()
        layer, _ = twins(net)
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

        layer, _ = twins(Buffered())
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
        layer, _ = twins(Net())
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
        layer, _ = twins(Net())
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
        layer, _ = twins(Net())
        self.solve(layer)
        other = copy.deepcopy(layer)
        assert FIRST in self.solve(other, 1)
        assert self.solve(other) == "cpu"


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
