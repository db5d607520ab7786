"""Price a plan before it runs: operations, memory, and seconds on this machine."""

from .make import make_plan
from .picture import draw
from .report import write
from .stages import PlanInputs

__all__ = ["PlanInputs", "draw", "make_plan", "write"]
