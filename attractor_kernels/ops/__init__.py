"""The low-level operators, each a torch.library operator with a schema, a fake and a derivative.

Their raw forms are `torch.ops.attractor_kernels.*`, which trust their arguments; the functions here check them.
"""

from ._declare import AdjointWarning, SolveResult
from .solve_affine import solve_affine
from .solve_gated import solve_gated
from .solve_mlp import solve_mlp

__all__ = ["AdjointWarning", "SolveResult", "solve_affine", "solve_gated", "solve_mlp"]
