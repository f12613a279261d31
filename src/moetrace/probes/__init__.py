"""What is attached to a module."""

from moetrace.probes.gradients import GradientMeter, GradientProbe
from moetrace.probes.mask import MaskProbe, takes_a_mask
from moetrace.probes.routing import RoutingProbe
from moetrace.probes.stale_code import drop_stale_code

__all__ = [
    "GradientMeter",
    "GradientProbe",
    "MaskProbe",
    "RoutingProbe",
    "drop_stale_code",
    "takes_a_mask",
]
