"""The loop for maps the package does not know, whole, in one launch: recorded once, replayed for solves of its kind.

A recording is a prologue and a body. The prologue sets the buffers back, and prepares the map. The body makes two
steps, so that the iterates are back in their buffer, and repeats on the device while problems run. A second step that
was not needed changes nothing: it copies what ended in the first to where the body leaves its iterates.

Only the module of a `nn.FixedPoint` layer is recorded. The first solve of a kind is driven from the host, which warms
up what has to be, and examined; the second is recorded. All others, and what cannot be recorded, the host drives.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backends.cuda_graph import CudaRecorder, Recorder
from ..backends.plan_table import plans_in_use
from ..info import SolveInfo
from ..ops.anderson_step import step_buffers
from . import examine
from .examine import Examination, Refusal
from .loop import bind_step, run_loop
from .maps import AdjointMap, Map, ModuleMap, unchecked
from .spec import Spec

FIRST = "the first solve of its kind"
# Kinds remembered for a module, recorded or not: shapes, settings, forward and adjoint.
MOST_KINDS = 16


@dataclass
class _Kind:
    """What is known about solves of one kind."""

    obstacle: str | None
    loop: RecordedLoop | None = None


class GraphLoops:
    """The recorded loops of all modules on devices of one type; those of a module that is gone are gone."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.device_type = recorder.device_type
        self._kinds: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, _Kind]] = weakref.WeakKeyDictionary()

    def run(self, f: Map, z0: Tensor, spec: Spec, backend: str) -> tuple[Tensor, SolveInfo]:
        """Solves z = f(z) without gradients, by a recorded loop if there is or can be one; z0 [*batch, *state]."""
        examine.note_solve()
        if self._recorder.capturing():  # nothing can be read back, so no step is left out
            z, info = run_loop(f, z0, spec, backend, all_steps=True)
            info.backend = f"{backend} (all steps: the stream is being captured)"
            return z, info
        try:
            return self._run_recorded(f, z0, spec, backend)
        except Refusal as refusal:
            z, info = run_loop(f, z0, spec, backend)
            info.backend = _by_host(backend, str(refusal))
            return z, info

    def _run_recorded(self, f: Map, z0: Tensor, spec: Spec, backend: str) -> tuple[Tensor, SolveInfo]:
        source = unchecked(f)
        if isinstance(source, AdjointMap):
            forward, adjoint = source.forward, True
        else:
            forward, adjoint = source if isinstance(source, ModuleMap) else None, False
        if forward is None:
            raise Refusal("f is not the module of a FixedPoint layer")
        assert isinstance(source, (ModuleMap, AdjointMap))
        if forward.obstacle is not None:
            raise Refusal(f"the map cannot be recorded: {forward.obstacle}")
        if (obstacle := self._recorder.obstacle(z0.device)) is not None:
            raise Refusal(obstacle)
        if not z0.numel():
            raise Refusal("the state is empty")
        try:
            key = self._key(source, forward, z0, spec, backend)
        except Refusal as refusal:
            raise Refusal(f"the map cannot be recorded: {refusal}") from None
        kinds = self._kinds.setdefault(forward.module, OrderedDict())
        kind = kinds.get(key)
        if kind is None:
            return self._examine(f, source, forward, z0, spec, backend, kinds, key)
        kinds.move_to_end(key)
        if kind.obstacle is None and kind.loop is None:
            self._record(kind, source, forward, z0, spec, backend)
        if kind.loop is None:
            if not adjoint:
                forward.obstacle = kind.obstacle
            raise Refusal(f"the map cannot be recorded: {kind.obstacle}")
        return kind.loop.solve(source.inputs, z0)

    def _key(
        self, source: ModuleMap | AdjointMap, forward: ModuleMap, z0: Tensor, spec: Spec, backend: str
    ) -> Hashable:
        device = z0.device
        current = examine.settings(device.type)
        state = examine.state_of(forward.module, device)
        if isinstance(source, ModuleMap):
            forward.situation = (current, state)
        elif forward.situation is None or forward.situation[1] != state:
            raise Refusal("it was changed between the forward and the backward pass")
        layouts = tuple(examine.layout_of("input", tensor, device) for tensor in source.inputs)
        kind = type(source), spec, backend, z0.shape, z0.dtype, device, layouts, current, forward.situation
        return *kind, plans_in_use()

    def _examine(
        self,
        f: Map,
        source: ModuleMap | AdjointMap,
        forward: ModuleMap,
        z0: Tensor,
        spec: Spec,
        backend: str,
        kinds: OrderedDict[Hashable, _Kind],
        key: Hashable,
    ) -> tuple[Tensor, SolveInfo]:
        """Solves from the host, watching, and remembers what was found."""
        module = forward.module
        known = None
        if isinstance(source, ModuleMap):
            known = [*module.parameters(), *module.buffers(), *source.inputs]
        examination = Examination(f, known, self._recorder)
        z, info = run_loop(examination, z0, spec, backend)
        obstacle = examination.obstacle
        if isinstance(source, ModuleMap):
            forward.obstacle = obstacle
        kinds[key] = _Kind(obstacle)
        while len(kinds) > MOST_KINDS:
            kinds.popitem(last=False)
        info.backend = _by_host(backend, FIRST if obstacle is None else f"the map cannot be recorded: {obstacle}")
        return z, info

    def _record(
        self, kind: _Kind, source: ModuleMap | AdjointMap, forward: ModuleMap, z0: Tensor, spec: Spec, backend: str
    ) -> None:
        assert forward.situation is not None
        try:
            with self._recorder.exclusive(z0.device):
                kind.loop = RecordedLoop(self._recorder, source, forward.situation[0], z0, spec, backend)
        except Exception as error:  # whatever it was: the host's loop meets it again, or does without
            kind.obstacle = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class RecordedLoop:
    """A whole solve of one kind as a recording, and the memory it works on."""

    def __init__(
        self,
        recorder: Recorder,
        f: ModuleMap | AdjointMap,
        of_forward: tuple[Hashable, ...],
        z0: Tensor,
        spec: Spec,
        backend: str,
    ) -> None:
        assert spec.tail is not None
        self._recorder, self._backend = recorder, backend
        self._batch = batch = z0.shape[: spec.batch_ndim]
        problems, groups = batch.numel(), z0.shape[spec.batch_ndim : spec.mixing_ndim].numel()
        with torch.no_grad():
            self._inputs = tuple(tensor.detach().clone() for tensor in f.inputs)
            self._z = z = z0.detach().clone(memory_format=torch.contiguous_format)
        self._buffers = buffers = step_buffers(
            z, problems, groups, spec.solver, max_steps=spec.tail.max_steps, trace=spec.tail.trace
        )
        step, rest = bind_step(buffers, spec, backend)
        prepared: list[Map] = []
        current = examine.settings(z.device.type)

        def prologue() -> None:
            buffers.control.zero_()
            buffers.active.fill_(problems)
            if buffers.trace is not None:
                buffers.trace.fill_(torch.nan)
            with examine.autocast_as(of_forward, z.device.type):
                prepared.append(f.at(self._inputs))

        def body() -> None:
            with examine.autocast_as(current, z.device.type):
                for iterate, following in ((z, buffers.out), (buffers.out, z)):
                    step(iterate, prepared[0](iterate).contiguous(), following, *rest)

        with torch.no_grad():
            held = tuple(tensor for tensor in (*self._inputs, z, *buffers) if tensor is not None)
            self._recording = recorder.record(buffers.active, held, prologue, body)

    def solve(self, inputs: tuple[Tensor, ...], z0: Tensor) -> tuple[Tensor, SolveInfo]:
        buffers = self._buffers
        with torch.no_grad(), self._recorder.exclusive(z0.device):
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
            self._z.copy_(z0)
            self._recording.launch()
            z = self._z.clone()
            trace = None if buffers.trace is None else buffers.trace.clone()
            info = SolveInfo(buffers.steps, buffers.residual, buffers.status, trace, self._backend, self._batch)
        return z, info


def _by_host(backend: str, reason: str) -> str:
    return f"{backend} (host loop: {reason})"


# The one user of CUDA graphs; tests put a recorder of their own in its place.
LOOPS = GraphLoops(CudaRecorder())
