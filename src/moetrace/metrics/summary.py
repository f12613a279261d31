"""A window of all layers in the few keys that a tracker shows.

Trackers slow down and readers give up when keys grow with the model, so the summary has a fixed
number of keys; detail per layer is asked for, and detail per expert never leaves as scalars.
"""

from collections.abc import Callable, Mapping

import numpy as np

__all__ = ["DETAIL", "SUMMARY", "layer_detail", "layer_summary"]

Metrics = Mapping[str, float | None]

SUMMARY = {
    "moe/avg_expert_cv": ("load_cv", "mean"),
    "moe/avg_expert_cv_excess": ("load_cv_excess", "mean"),
    "moe/avg_max_vio": ("max_vio", "mean"),
    "moe/p90_max_vio": ("max_vio", "p90"),
    "moe/worst_max_vio": ("max_vio", "max"),
    "moe/worst_max_vio_excess": ("max_vio_excess", "max"),
    "moe/dead_experts_window": ("dead_experts", "sum"),
    "moe/avg_routing_entropy": ("routing_entropy", "mean"),
    "moe/lowest_routing_entropy": ("routing_entropy", "min"),
    "moe/avg_load_balancing_loss": ("load_balancing_loss", "mean"),
    "moe/avg_z_loss": ("z_loss", "mean"),
}
"""Key, the metric of a layer that it is formed of, and how it is formed over the layers."""

REDUCTIONS: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "p90": lambda values: float(np.percentile(values, 90)),
    "sum": sum,
    "min": min,
    "max": max,
}


DETAIL = {
    "expert_cv": "load_cv",
    "max_usage_ratio": "load_imbalance",
    "unused_experts": "dead_experts",
    "active_experts": "active_experts",
    "routing_entropy": "routing_entropy",
}
"""Name of a layer's own key, and the metric that it shows."""


def layer_summary(by_layer: Mapping[str, Metrics]) -> dict[str, float]:
    """The keys of `SUMMARY`; one is absent where no layer has its metric.

    Args:
        by_layer: The metrics of each layer, None where a layer has none.

    >>> layer_summary({"a": {"load_cv": 0.25}, "b": {"load_cv": 0.75}, "c": {"load_cv": None}})
    {'moe/avg_expert_cv': 0.5}
    """
    found = {
        key: [value for row in by_layer.values() if (value := row.get(metric)) is not None]
        for key, (metric, _) in SUMMARY.items()
    }
    return {key: REDUCTIONS[SUMMARY[key][1]](values) for key, values in found.items() if values}


def layer_detail(by_layer: Mapping[str, Metrics]) -> dict[str, float]:
    """Five keys a layer, ``moe/{layer}/{name}``; one is absent where the layer has no such metric.

    Args:
        by_layer: The metrics of each layer, None where a layer has none.

    >>> layer_detail({"mlp": {"load_cv": 0.25, "routing_entropy": None}})
    {'moe/mlp/expert_cv': 0.25}
    """
    detail: dict[str, float] = {}
    for layer, row in by_layer.items():
        for name, metric in DETAIL.items():
            value = row.get(metric)
            if value is not None:
                detail[f"moe/{layer}/{name}"] = value
    return detail
