"""The kinds of pictures, by the names that the command line knows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moetrace.plot import gradients, load, sub_keys, surfaces, usage_plots, weights
from moetrace.plot.choice import Choice

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of picture.

    Attributes:
        draw: Draws it on an empty figure.
        width: Inches.
        height: Inches.
        text: What it shows.
    """

    draw: Callable[[Any, Choice], None]
    width: float
    height: float
    text: str


KINDS = {
    "heatmap": Kind(load.draw_heatmap, 7.2, 4.2, "layers by experts of a window"),
    "experts": Kind(load.draw_experts, 7.2, 4.2, "experts of a layer over time"),
    "curves": Kind(load.draw_curves, 8.2, 5.4, "metrics of every layer over the steps"),
    "usage": Kind(usage_plots.draw_usage, 8.2, 6.0, "busiest experts of each layer as bars"),
    "top-experts": Kind(usage_plots.draw_top_experts, 7.6, 4.0, "busiest experts by layer"),
    "coverage": Kind(usage_plots.draw_coverage, 6.4, 3.6, "share of experts used, over time"),
    "hot-experts": Kind(usage_plots.draw_hot_experts, 5.6, 5.6, "table of the hot experts"),
    "rank": Kind(usage_plots.draw_ranks, 5.6, 4.2, "load by rank, beside a uniform choice"),
    "sub-keys": Kind(sub_keys.draw_sub_keys, 7.2, 7.4, "draws per sub-key of a PEER layer"),
    "weights": Kind(weights.draw_weights, 8.2, 5.4, "router weights over the steps"),
    "gradients": Kind(gradients.draw_gradients, 6.8, 3.8, "gradient norm per group"),
    "gradient-heatmap": Kind(
        gradients.draw_gradient_heatmap, 7.2, 6.8, "blocks by steps: all, attention, MLP"
    ),
    "gradient-bars": Kind(gradients.draw_gradient_bars, 7.2, 5.4, "mean norm of each block"),
    "gradient-steps": Kind(
        gradients.draw_gradient_steps, 9.6, 3.8, "norms of all blocks at seven steps"
    ),
    "gradient-surface": Kind(surfaces.draw_surface, 6.6, 4.8, "blocks by steps as a surface"),
    "gradient-wireframe": Kind(surfaces.draw_wireframe, 6.6, 4.8, "the same as a wireframe"),
    "gradient-bars-3d": Kind(surfaces.draw_bars3d, 6.6, 4.8, "the same as bars"),
}
"""Every kind, in the order of the documentation."""
