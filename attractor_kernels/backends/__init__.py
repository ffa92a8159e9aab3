"""Implementations of the operators, one folder or file each, and the registry that chooses among them."""

from .override import use_plan
from .registry import Availability, available, use_backend

__all__ = ["Availability", "available", "use_backend", "use_plan"]
