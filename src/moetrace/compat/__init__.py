"""The names that users of other MoE monitors know, as thin faces over the same core.

A program written for one of them runs with its import line changed and nothing else. Names are
resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetrace.compat.callback import MoECallback, create_moe_callback_for_pytorch
    from moetrace.compat.concepts import (
        calculate_load_balancing_loss,
        calculate_routing_entropy,
        track_expert_usage,
    )
    from moetrace.compat.expert_usage import ExpertUsageTracker
    from moetrace.compat.monitoring import MoEMonitoring
    from moetrace.compat.router_weights import (
        compute_weight_statistics,
        extract_router_weights,
    )
    from moetrace.compat.weight_files import load_snapshot
    from moetrace.compat.weight_tracker import RouterWeightTracker

_HOMES = {
    "ExpertUsageTracker": "expert_usage",
    "MoECallback": "callback",
    "MoEMonitoring": "monitoring",
    "RouterWeightTracker": "weight_tracker",
    "calculate_load_balancing_loss": "concepts",
    "calculate_routing_entropy": "concepts",
    "compute_weight_statistics": "router_weights",
    "create_moe_callback_for_pytorch": "callback",
    "extract_router_weights": "router_weights",
    "load_snapshot": "weight_files",
    "track_expert_usage": "concepts",
}

__all__ = [
    "ExpertUsageTracker",
    "MoECallback",
    "MoEMonitoring",
    "RouterWeightTracker",
    "calculate_load_balancing_loss",
    "calculate_routing_entropy",
    "compute_weight_statistics",
    "create_moe_callback_for_pytorch",
    "extract_router_weights",
    "load_snapshot",
    "track_expert_usage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moetrace.compat' has no attribute {name!r}")
    return getattr(import_module(f"moetrace.compat.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
