"""Whether the solves of a module can be recorded once and replayed: what of it a recording would freeze.

A recording repeats the same operations on the same memory. So the operations must not depend on data, draw random
numbers or leave traces, all memory they read must be known, and everything else they were chosen by (settings of
torch, numbers and objects among the module's attributes) is compared before every replay.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

from ..backends.cuda_graph import Recorder
from .capture import tensors_in
from .loop import Iterate
from .maps import Map


class Refusal(Exception):
    """Why a solve cannot be recorded."""


_PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
_PLAIN_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_OWN_ATTRIBUTES = frozenset(nn.Module().__dict__)
_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")
_DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def settings(device_type: str) -> tuple[Hashable, ...]:
    """The settings of torch that choose what a map's operations do; raises Refusal under a mode that watches them."""
    if torch._C._len_torch_dispatch_stack():
        raise Refusal("a torch dispatch mode is on")
    for i in range(torch._C._len_torch_function_stack()):
        if type(torch._C._get_function_stack_at(i)) is not DeviceContext:
            raise Refusal("a torch function mode is on")
    return (
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(device_type),
        torch.get_autocast_dtype(device_type),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


@contextmanager
def autocast_as(settings: tuple[Hashable, ...], device_type: str) -> Iterator[None]:
    """Autocast as it was; without its cache, which holds tensors that somebody else frees."""
    _, enabled, dtype, *_ = settings
    with torch.autocast(device_type, dtype=dtype, enabled=bool(enabled), cache_enabled=False):  # type: ignore[arg-type]
        yield


def state_of(module: nn.Module, device: torch.device) -> tuple[Hashable, ...]:
    """What a recording of this module would freeze; raises Refusal where that cannot be compared.

    The memory of parameters and buffers, not their values; training flags; attributes, by value where they are
    numbers, strings or containers of such, else by identity.
    """
    if nn.modules.module._has_any_global_hook():
        raise Refusal("modules have global hooks")
    found: list[Any] = []
    for part in module.modules():
        kind = type(part)
        if (obstacle := _obstacle_of(kind)) is not None:
            raise Refusal(obstacle)
        own = part.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            raise Refusal(f"its {kind.__name__} has hooks")
        if own.get("_compiled_call_impl") is not None or "_orig_mod" in own["_modules"]:
            raise Refusal("it is compiled")
        found += [kind, part.training]
        for tensors in (own["_parameters"], own["_buffers"]):
            for name, tensor in tensors.items():
                found.append((name, None if tensor is None else _memory_of(name, tensor, device)))
        found += [(name, _mark(value)) for name, value in own.items() if name not in _OWN_ATTRIBUTES]
    return tuple(found)


def _obstacle_of(kind: type[nn.Module]) -> str | None:
    if issubclass(kind, torch.jit.ScriptModule):
        return "it is scripted"
    if kind.__module__.startswith(("torch.distributed", "torch.nn.parallel")):
        return f"its {kind.__name__} speaks with other processes"
    return None


def _memory_of(name: str, tensor: Tensor, device: torch.device) -> tuple[Hashable, ...]:
    return tensor.data_ptr(), *layout_of(name, tensor, device)


def layout_of(name: str, tensor: Tensor, device: torch.device) -> tuple[Hashable, ...]:
    """How a tensor lies in memory; raises Refusal where that is out of the ordinary."""
    if type(tensor) not in _PLAIN_TENSORS:
        raise Refusal(f"its {name} is a {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.device != device:
        raise Refusal(f"its {name} has layout {tensor.layout} on {tensor.device}")
    return tensor.dtype, tensor.shape, tensor.stride()


def _mark(value: Any, depth: int = 4) -> Hashable:
    if isinstance(value, _PLAIN_VALUES):
        return type(value), value
    if depth and type(value) in (list, tuple):
        return (type(value), *(_mark(item, depth - 1) for item in value))
    if depth and type(value) is dict:
        return (dict, *((_mark(key, depth - 1), _mark(item, depth - 1)) for key, item in value.items()))
    return _Identity(value)


class _Identity:
    """Equal to that of the same object only, as long as it lives: the next may have its address."""

    __slots__ = ("_id", "_object")

    def __init__(self, value: Any) -> None:
        self._id = id(value)
        self._object: Callable[[], Any]
        try:
            self._object = weakref.ref(value)
        except TypeError:
            self._object = lambda: value

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Identity) or self._id != other._id:
            return False
        value = self._object()
        return value is not None and value is other._object()


class Examination:
    """f, watched in its first evaluation.

    Attributes:
        obstacle: why its evaluation cannot be replayed; None if nothing was found, or before it.
    """

    def __init__(self, f: Map, known: list[Tensor] | None, recorder: Recorder) -> None:
        """known: all the memory that f may read besides its argument; None: any."""
        self.obstacle: str | None = None
        self._f = f
        self._known = known
        self._recorder = recorder
        self._pending = True

    def __call__(self, z: Tensor) -> Tensor:
        if not self._pending:
            return self._f(z)
        self._pending = False
        random = self._recorder.random_state(z.device)
        watch = _Watch(None if self._known is None else [z, *self._known])
        argument = Iterate(z)
        holders = argument.holders()
        outer, _watches.current = getattr(_watches, "current", None), watch
        try:
            with _in_sight(), watch:
                fz = self._f(z)
        finally:
            _watches.current = outer
        self.obstacle = watch.obstacle
        watch.forget()
        if not torch.equal(random, self._recorder.random_state(z.device)):
            self.obstacle = "it draws random numbers"
        if self.obstacle is None and not _same_memory(fz, z) and argument.holders() != holders:
            self.obstacle = "it keeps its argument"
        return fz


@contextmanager
def _in_sight() -> Iterator[None]:
    """Compiled parts hidden inside f run as they were written, and nothing was computed before."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


_watches = threading.local()


def note_solve() -> None:
    """A solve that starts inside a map under examination is an obstacle to recording the map."""
    watch = getattr(_watches, "current", None)
    if watch is not None and watch.obstacle is None:
        watch.obstacle = "it solves for a fixed point itself"


class _Watch(TorchDispatchMode):
    """Looks for what a replay could not do, or would do to the wrong memory."""

    def __init__(self, known: list[Tensor] | None) -> None:
        super().__init__()
        self.obstacle: str | None = None
        self._kept = None if known is None else {_memory(tensor) for tensor in known}
        # It stays alive while watching, so that no address is used twice.
        self._made: dict[int | None, Tensor] = {}

    def forget(self) -> None:
        self._made.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((*args, *kwargs.values())))
        if func is torch.ops.aten.lift_fresh.default:  # a tensor made of Python's numbers
            self._made.update((_memory(tensor), tensor) for tensor in given)
        if self.obstacle is None:
            self.obstacle = self._objection(func, args, kwargs, given)
        result = func(*args, **kwargs)
        made = list(tensors_in((result,)))
        # A tensor without dimensions may be an operand from the host: it is read when the kernel is launched.
        devices = {tensor.device for tensor in given if tensor.dim()} | {tensor.device for tensor in made}
        if self.obstacle is None and len(devices) > 1:
            self.obstacle = f"it moves data between devices ({func})"
        self._made.update((_memory(tensor), tensor) for tensor in made)
        return result

    def _objection(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]) -> str | None:
        if _DATA_DEPENDENT.intersection(func.tags):
            return f"its operations depend on data ({func})"
        if func.namespace in _COLLECTIVES:
            return f"it speaks with other processes ({func})"
        if self._kept is None:
            return None
        for argument, value in zip(func._schema.arguments, args, strict=False):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes and any(_memory(tensor) in self._kept for tensor in tensors_in((value,))):
                return f"it changes a parameter, a buffer or its input in place ({func})"
        for tensor in given:
            if (memory := _memory(tensor)) not in self._kept and memory not in self._made:
                return (
                    f"it uses a tensor of shape {list(tensor.shape)} that is neither its input nor among the module's "
                    f"parameters and buffers ({func})"
                )
        return None


def _memory(tensor: Tensor) -> int | None:
    """Names the memory of a tensor; None: it has none of the usual kind."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return _memory(a) == _memory(b)
