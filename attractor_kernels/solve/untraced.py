"""The differentiated solve of a map no operator knows, kept out of torch.compile's sight: a graph break.

Imported only while something is compiled, because torch.compiler.disable loads the compiler.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..info import SolveInfo
from .fixed_point import solve_map
from .spec import Spec


@torch.compiler.disable(reason="the gradient of this solve cannot be traced; use fullgraph=False")
def solve_map_untraced(f: Callable[[Tensor], Tensor], z0: Tensor, spec: Spec) -> tuple[Tensor, SolveInfo]:
    return solve_map(f, z0, spec, differentiate=True)
