"""How many tensor operations a piece of code calls, and how often it makes the host wait for a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Operators that hand a tensor's value, or a shape that depends on it, to the host.
_WAITING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
}
# Nothing is computed or moved.
_FREE = {"view", "reshape", "expand", "t", "transpose", "slice", "select", "unsqueeze", "squeeze", "permute", "detach"}
_FREE |= {"alias", "as_strided", "_unsafe_view", "empty", "new_empty", "empty_like", "empty_strided", "split", "unbind"}


@dataclass(frozen=True)
class Calls:
    """Tensor operations that compute or move something (on a GPU: launches), host synchronisations, names."""

    operations: int
    synchronisations: int
    by_name: dict[str, int]


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.name().split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def count(call: Callable[[], Any]) -> Calls:
    """Counts what one call of `call` does.

    >>> import torch
    >>> count(lambda: (torch.ones(2) + 1).sum().item()).synchronisations
    1
    """
    with _Count() as mode:
        call()
    waiting = sum(n for name, n in mode.names.items() if name in _WAITING)
    computing = {
        name: n for name, n in mode.names.items() if name not in _WAITING and name.partition("::")[2] not in _FREE
    }
    return Calls(sum(computing.values()), waiting, dict(mode.names.most_common()))
