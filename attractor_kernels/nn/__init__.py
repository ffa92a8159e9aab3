"""The layer and the cells it solves fast."""

from .cells import AffineCell, Cell, GatedCell, MLPCell, partial_relu
from .layer import FixedPoint

__all__ = ["AffineCell", "Cell", "FixedPoint", "GatedCell", "MLPCell", "partial_relu"]
