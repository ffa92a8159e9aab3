"""Which tensors a map uses besides its argument, and evaluating it with others in their place.

A second derivative of a fixed point needs f at a connected z and derivatives with respect to everything f closes
over. Torch functions are watched while f runs; that this missed nothing is verified on f's graph before use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .maps import Map


class Captured(NamedTuple):
    """The tensors with gradients that f used; `obstacle` says why they are not known."""

    tensors: tuple[Tensor, ...]
    obstacle: str | None


def evaluate_and_capture(f: Map, z: Tensor) -> tuple[Tensor, Captured]:
    """f(z), and the tensors besides z that it used and that require gradients."""
    if is_compiled(f):  # it cannot run compiled while it is watched
        return f(z), Captured((), "it is compiled")
    watch = _Watch(z)
    if "torch._dynamo" in sys.modules:
        # Compiled parts hidden inside f have to run as they were written, or they would be compiled anew.
        with torch.compiler.set_stance("force_eager"), watch:
            fz = f(z)
    else:
        with watch:
            fz = f(z)
    return fz, Captured(tuple(watch.found.values()), None)


def evaluate_at(f: Map, z: Tensor, captured: Captured) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """f at z with fresh aliases of z and of the captured tensors: f's value, z's alias, their aliases.

    So derivatives with respect to each can be told apart, even where one depends on another; whether f's value
    depends on nothing else, `reaches_only` tells.
    """
    alias = z.view_as(z)
    aliases = tuple(t.view_as(t) for t in captured.tensors)
    with _Substitute({id(t): a for t, a in zip(captured.tensors, aliases, strict=True)}):
        fz = f(alias)
    return fz, alias, aliases


def depends_on_others(fz: Tensor, leaf: Tensor) -> bool:
    """Whether a tensor with gradients other than `leaf` is behind fz."""
    return any(getattr(node, "variable", leaf) is not leaf for node in _graph(fz, frozenset()))


def reaches_only(fz: Tensor, sources: tuple[Tensor, ...]) -> bool:
    """Whether no tensor with gradients is behind fz that is not behind, or one of, the given ones."""
    stop = frozenset(source.grad_fn for source in sources)
    return not any(hasattr(node, "variable") for node in _graph(fz, stop))


def is_compiled(f: Any, depth: int = 3) -> bool:
    """Whether f is, closes over or contains something torch.compile made."""
    if hasattr(f, "_torchdynamo_orig_callable") or hasattr(f, "_orig_mod"):
        return True
    if depth == 0 or "torch._dynamo" not in sys.modules:
        return False
    if isinstance(f, torch.nn.Module):
        return any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in f.modules())
    inner = [getattr(f, name, None) for name in ("f", "module", "__self__", "func")]
    for cell in getattr(f, "__closure__", None) or ():
        try:
            inner.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return any(callable(value) and is_compiled(value, depth - 1) for value in inner)


def tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


class _Watch(TorchFunctionMode):
    """Collects the tensors with gradients that enter torch functions from outside."""

    def __init__(self, argument: Tensor) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        # What f made. It stays alive while watching, so that no id is used twice.
        self.made: dict[int, Tensor] = {id(argument): argument}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors_in((*args, *kwargs.values())):
            if tensor.requires_grad and id(tensor) not in self.made:
                self.found[id(tensor)] = tensor
        result = func(*args, **kwargs)
        for tensor in tensors_in((result,)):
            if id(tensor) not in self.found:
                self.made[id(tensor)] = tensor
        return result


class _Substitute(TorchFunctionMode):
    """Hands torch functions other tensors for the given ones, by id."""

    def __init__(self, others: dict[int, Tensor]) -> None:
        super().__init__()
        self.others = others

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {name: self._replace(value) for name, value in (kwargs or {}).items()}
        return func(*(self._replace(value) for value in args), **kwargs)

    def _replace(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.others.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)(self._replace(item) for item in value)
        return value


def _graph(fz: Tensor, stop: frozenset[Any]) -> Iterator[Any]:
    """The nodes behind fz, up to and without those in `stop`."""
    pending, seen = [fz.grad_fn], set(stop)
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending.extend(following for following, _ in node.next_functions)
