"""The accumulate operator, on the device."""

from moetrace.ops.library import Bin, TracerState, accumulate, count, register
from moetrace.ops.reference import SCORINGS

__all__ = ["SCORINGS", "Bin", "TracerState", "accumulate", "count", "register"]
