"""Implementations of the operators, one folder or file each, and the registry that chooses among them."""

from .override import use_plan
from .plan_table import PlanTable, use_plan_table
from .registry import Availability, available, use_backend

__all__ = ["Availability", "PlanTable", "available", "use_backend", "use_plan", "use_plan_table"]
