"""The low-level operators, each a torch.library operator with a schema, a fake and a derivative.

Their raw forms are `torch.ops.attractor_kernels.*`, which trust their arguments; the functions here check them.
"""

from ..backends import cpu, cuda
from ._declare import OPERATORS, AdjointWarning, SolveResult
from .anderson_step import StepBuffers, anderson_step, step_buffers
from .residual_norm import residual_norm
from .solve_affine import solve_affine
from .solve_gated import solve_gated
from .solve_mlp import solve_mlp

__all__ = [
    "AdjointWarning",
    "SolveResult",
    "StepBuffers",
    "anderson_step",
    "residual_norm",
    "solve_affine",
    "solve_gated",
    "solve_mlp",
    "step_buffers",
]

for _name in (*OPERATORS, "affine_slope", "anderson_step", "residual_norm"):
    cpu.find_kernel(_name)
    cuda.find_kernel(_name)

from ..backends.triton import register as _register  # noqa: E402, F401 (it implements what stands above)
