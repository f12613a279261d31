"""What is attached to a module."""

from moetrace.probes.gradients import GradientMeter, GradientProbe
from moetrace.probes.mask import MaskProbe, takes_a_mask
from moetrace.probes.placement import Placement, is_hooked, put_hooks
from moetrace.probes.receipts import RECEIPTS, Receipts
from moetrace.probes.routing import RoutingProbe
from moetrace.probes.stale_code import drop_stale_code
from moetrace.probes.weights import WeightMeter, WeightProbe

__all__ = [
    "RECEIPTS",
    "GradientMeter",
    "GradientProbe",
    "MaskProbe",
    "Placement",
    "Receipts",
    "RoutingProbe",
    "WeightMeter",
    "WeightProbe",
    "drop_stale_code",
    "is_hooked",
    "put_hooks",
    "takes_a_mask",
]
