"""What is attached to a module."""

from moetrace.probes.gradients import GradientMeter, GradientProbe
from moetrace.probes.indices import IndexMeter, IndexWindow
from moetrace.probes.mask import MaskProbe, takes_a_mask
from moetrace.probes.placement import Placement, device_of, is_hooked, put_hooks
from moetrace.probes.receipts import RECEIPTS, Receipts
from moetrace.probes.routing import RoutingProbe
from moetrace.probes.stale_code import drop_stale_code
from moetrace.probes.tables import IndexProbe, Table, tables_of
from moetrace.probes.weights import WeightMeter, WeightProbe

__all__ = [
    "RECEIPTS",
    "GradientMeter",
    "GradientProbe",
    "IndexMeter",
    "IndexProbe",
    "IndexWindow",
    "MaskProbe",
    "Placement",
    "Receipts",
    "RoutingProbe",
    "Table",
    "WeightMeter",
    "WeightProbe",
    "device_of",
    "drop_stale_code",
    "is_hooked",
    "put_hooks",
    "tables_of",
    "takes_a_mask",
]
