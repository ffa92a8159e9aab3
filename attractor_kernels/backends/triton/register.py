"""The operators of the Triton namespace on CUDA: the kernel where it covers the call, plain torch otherwise.

Triton is imported by the first call that it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ops._declare import _LIBRARIES, OPERATORS, TRITON_NAMESPACE
from ..reference.kernels import MAPS, make_kernel
from ..reference.step import anderson_step as reference_step
from . import Sizes, availability, uncovered


def _implementation(name: str) -> Callable[..., Any]:
    reference = make_kernel(OPERATORS[name], MAPS[name])

    def kernel(*arguments: Any) -> Any:
        if not availability()[0]:
            return reference(*arguments)
        from . import launch

        if uncovered(name, arguments[0].dtype, launch.sizes_of(name, arguments)) is not None:
            return reference(*arguments)
        return launch.solve_rows(name, arguments, launch.facts_of(arguments[0].device))

    return kernel


def _anderson_step(*arguments: Any) -> None:
    history = arguments[4]
    entries = arguments[0].numel() // max(history.shape[0] * history.shape[1], 1)
    sizes = Sizes(entries, history=max(history.shape[3] - 1, 0))
    contiguous = all(t.is_contiguous() for t in arguments[:5])
    if availability()[0] and contiguous and uncovered("anderson_step", arguments[0].dtype, sizes) is None:
        from . import step_launch

        step_launch.anderson_step(*arguments)
    else:
        reference_step(*arguments)


[_library] = [library for library in _LIBRARIES if library.ns == TRITON_NAMESPACE]
for _name in MAPS:
    _library.impl(_name, _implementation(_name), "CUDA")
_library.impl("anderson_step", _anderson_step, "CUDA")
