"""The accumulate operator, on the device."""

from moetrace.ops.library import Bin, TracerState, accumulate, count, register

__all__ = ["Bin", "TracerState", "accumulate", "count", "register"]
