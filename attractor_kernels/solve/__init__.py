"""The front door: checking, dispatch, the loops for maps the package does not know, and gradients."""

from .fixed_point import fixed_point

__all__ = ["fixed_point"]
