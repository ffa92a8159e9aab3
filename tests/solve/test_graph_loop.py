"""The loop recorded whole: on a tape, which mirrors a CUDA graph on the CPU, and on a device where there is one."""

from __future__ import annotations

import gc

import pytest
import torch
from layers import SOLVERS, Net, assert_same_solve, inputs, needs_kernels, twins
from torch import Tensor, nn

import attractor_kernels as ak
from attractor_kernels.backends import PlanTable
from attractor_kernels.backends.plan import H100
from attractor_kernels.backends.plan_table import Kind, PlanEntry
from attractor_kernels.solve.graph_loop import FIRST
from attractor_kernels.solve.stop_flag import LaggingReader


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

    @pytest.mark.parametrize("backend", ["cuda", "triton"])
    def test_plans_have_recordings_of_their_own(self, recorder, backend):
        layer, plain = twins(Net())
        choices = {"cuda": {"kept": 0}, "triton": {"warps": 2}}[backend]
        with torch.no_grad():
            for turn in range(4):
                with ak.backends.use_plan("anderson_step", backend=backend, **choices if turn % 2 else {}):
                    for _ in range(2):
                        assert_same_solve(layer, plain, inputs(4, 6))
                    assert layer.info.backend == "cpu"
        assert [len(recording.rounds) for recording in recorder.recordings] == [3, 3]

    def test_tables_have_recordings_of_their_own(self, recorder):
        layer, _ = twins(Net())
        kind = Kind("cuda", "solve_affine", "float32", "full", "auto", batch=64, dim=64)
        tables = [PlanTable(H100, (PlanEntry(kind, {"blocks": blocks}),)) for blocks in (1, 1, 2)]
        with torch.no_grad():
            for table in (None, *tables):
                with ak.backends.use_plan_table(table):
                    for _ in range(2):
                        layer(inputs(4, 6))
        assert [len(recording.rounds) for recording in recorder.recordings] == [1, 3, 1]

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


def on_device(**options) -> tuple[ak.nn.FixedPoint, ak.nn.FixedPoint]:
    layer, plain = twins(Net(64, torch.float32), **{"rtol": 1e-5, "solver": ak.Anderson(), **options})
    return layer.cuda(), plain.cuda()


def given(*shape: int) -> Tensor:
    return inputs(*shape, dtype=torch.float32, device="cuda")


def assert_close_solve(layer: ak.nn.FixedPoint, plain: ak.nn.FixedPoint, x: Tensor) -> None:
    """The products of a capture may differ in rounding from those outside."""
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)
    assert int((layer.info.steps - plain.info.steps).abs().max()) <= 1
    assert torch.equal(layer.info.status, plain.info.status)


@pytest.mark.gpu
class TestOnADevice:
    @pytest.fixture(autouse=True)
    def _compiled(self):
        if not (usable := ak.backends.available()["cuda"]):
            pytest.skip(usable.reason)

    @pytest.mark.parametrize("solver", SOLVERS, ids=str)
    @pytest.mark.parametrize("shape", [(7, 64), (512, 64), (3, 5, 64), (2, 20_000, 64)], ids=str)
    def test_agrees_with_the_host_loop(self, solver, shape):
        """A warp a problem, many of them, mixed per token, and the cooperative grid."""
        layer, plain = on_device(solver=solver, mixing_ndim=2 if shape == (3, 5, 64) else None, trace=True)
        with torch.no_grad():
            for turn in range(4):
                assert_close_solve(layer, plain, given(*shape))
                assert layer.info.backend == ("cuda" if turn else f"cuda (host loop: {FIRST})")

    def test_replays_have_the_same_bits(self):
        layer, _ = on_device()
        x = given(64, 64)
        with torch.no_grad():
            layer(x)
            first = layer(x)
            layer(given(64, 64))
            assert torch.equal(layer(x), first)

    def test_training(self):
        layer, plain = on_device()
        optimizers = [torch.optim.SGD(one.parameters(), lr=1e-2) for one in (layer, plain)]
        for step in range(6):
            x = given(32, 64)
            for one, optimizer in zip((layer, plain), optimizers, strict=True):
                optimizer.zero_grad()
                one(x).square().mean().backward()
                optimizer.step()
            for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
            assert layer.info.adjoint.backend == ("cuda" if step else f"cuda (host loop: {FIRST})")

    def test_a_recorded_solve_waits_for_nothing(self):
        layer, _ = on_device()
        with torch.no_grad():
            for _ in range(2):
                layer(given(32, 64))
            x = given(32, 64)
            torch.cuda.set_sync_debug_mode("error")
            try:
                layer(x)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def test_a_recorded_solve_is_one_launch(self):
        layer, _ = on_device()
        with torch.no_grad():
            for _ in range(2):
                layer(given(32, 64))
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                layer(given(32, 64))
        names = [event.name for event in profile.events()]
        assert names.count("attractor_kernels_loop::launch") == 1
        assert not [name for name in names if "anderson_step" in name or name == "aten::linear"]

    def test_streams_take_turns(self):
        layer, plain = on_device()
        xs = [given(64, 64) for _ in range(8)]
        with torch.no_grad():
            for _ in range(2):
                layer(xs[0])
            streams = [torch.cuda.Stream() for _ in range(4)]
            torch.cuda.synchronize()
            found = []
            for i, x in enumerate(xs):
                with torch.cuda.stream(streams[i % 4]):
                    found.append(layer(x))
            torch.cuda.synchronize()
            for x, z in zip(xs, found, strict=True):
                torch.testing.assert_close(z, plain(x), rtol=1e-4, atol=1e-4)

    def test_autocast(self):
        class Cast(Net):
            def forward(self, z, x):
                return super().forward(z, x).float()

        layer, plain = twins(Cast(64, torch.float32), rtol=1e-2)
        layer, plain = layer.cuda(), plain.cuda()
        for _ in range(3):
            x = given(32, 64)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                z, expected = layer(x), plain(x)
            torch.testing.assert_close(z, expected, rtol=3e-2, atol=3e-2)
            z.sum().backward()
        assert layer.info.backend == layer.info.adjoint.backend == "cuda"

    def test_random_numbers_are_refused_and_torch_is_left_well(self):
        class Generating(Net):
            def __init__(self):
                super().__init__(64, torch.float32)
                self.generator = torch.Generator("cuda")

            def forward(self, z, x):
                return super().forward(z, x) + 0 * torch.rand(64, device="cuda", generator=self.generator)

        layer = ak.nn.FixedPoint(Generating()).cuda()
        with torch.no_grad():
            for turn in range(3):
                layer(given(8, 64))
                assert (FIRST if turn == 0 else "cannot be recorded") in layer.info.backend
        assert not torch.cuda.is_current_stream_capturing()
        self.test_agrees_with_the_host_loop(ak.Anderson(), (7, 64))
        graph = torch.cuda.CUDAGraph()
        x = given(8, 64)
        with torch.cuda.graph(graph):
            y = x + torch.rand_like(x)
        graph.replay()
        assert bool(y.isfinite().all())

    def test_what_waits_for_the_device_is_refused(self):
        class Deciding(Net):
            def forward(self, z, x):
                return super().forward(z, x) if float(z.detach().abs().max()) < 1e9 else z

        layer = ak.nn.FixedPoint(Deciding(64, torch.float32)).cuda()
        for _ in range(3):
            layer(given(8, 64))
            assert "depend on data" in layer.info.backend

    def test_inside_a_capture_of_the_callers(self):
        layer, plain = on_device(max_steps=30)
        x = given(16, 64)
        with torch.no_grad():
            expected = plain(x)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                z = layer(x)
            graph.replay()
        assert layer.info.backend == "cuda (all steps: the stream is being captured)"
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)

    def test_the_host_loop_steps_little_too_far(self):
        calls = 0
        w = given(64, 64) / 32

        def f(z):
            nonlocal calls
            calls += 1
            return torch.tanh(z @ w + 1)

        with torch.no_grad():
            _, info = ak.fixed_point(f, torch.zeros(16, 64, device="cuda"), rtol=1e-5)
        assert info.backend.startswith("cuda (host loop: ")
        assert 0 <= calls - int(info.steps.max()) <= LaggingReader.MOST_EXTRA_STEPS

    def test_memory_comes_back_for_later_recordings(self):
        def record() -> None:
            layer, _ = on_device()
            for _ in range(2):
                layer(given(4096, 64)).sum().backward()

        record()
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            record()
            gc.collect()
        assert torch.cuda.memory_allocated() <= before
