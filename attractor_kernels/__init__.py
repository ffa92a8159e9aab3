"""Fast fixed-point layers for torch: z* = f(z*, x), solved in one call, differentiated implicitly."""

from . import backends, nn, ops
from .backends import use_backend
from .info import ConvergenceError, SolveInfo, Status
from .ops import AdjointWarning
from .options import Anderson, Auto, Broyden, Implicit, Neumann, OneStep, Phantom, Picard, Unrolled
from .solve import fixed_point

__version__ = "0.1.0"

__all__ = [
    "AdjointWarning",
    "Anderson",
    "Auto",
    "Broyden",
    "ConvergenceError",
    "Implicit",
    "Neumann",
    "OneStep",
    "Phantom",
    "Picard",
    "SolveInfo",
    "Status",
    "Unrolled",
    "backends",
    "fixed_point",
    "nn",
    "ops",
    "use_backend",
]
