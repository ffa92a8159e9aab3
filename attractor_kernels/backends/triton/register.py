"""The operators of the Triton namespace on CUDA: the kernel where it covers the call, plain torch otherwise.

Triton is imported by the first call that it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ops._declare import _LIBRARIES, OPERATORS, TRITON_NAMESPACE
from ..reference.kernels import MAPS, make_kernel
from . import STATE_LIMIT, availability, uncovered


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


[_library] = [library for library in _LIBRARIES if library.ns == TRITON_NAMESPACE]
for _name in (name for name in STATE_LIMIT if name in OPERATORS):
    _library.impl(_name, _implementation(_name), "CUDA")
