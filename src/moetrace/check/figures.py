# pyright: strict
"""The figures that a rule may name: every metric of a layer, its counters, and short names.

Layers are routers, and tables of experts that are looked up (PEER), each with metrics of its own.
"""

import difflib

from moetrace.index_stats import INDEX_METRICS, IndexStats
from moetrace.metrics import METRICS
from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot

__all__ = ["COUNTED", "SHORT", "figure_named", "figures_of", "why_withheld"]

COUNTED = ("tokens", "calls", "masked", "dropped", "nonfinite", "out_of_range", "identity")
"""Counters of a layer, by their names in `RoutingStats`."""

SHORT = {
    "cv": "load_cv",
    "dead": "dead_experts",
    "active": "active_experts",
    "hot": "hot_experts",
    "entropy": "routing_entropy",
    "gini": "load_gini",
    "imbalance": "load_imbalance",
}
"""Names that people type, and the metric that each stands for."""

MOST_LIKELY = 3


def figure_named(name: str) -> str:
    """The metric or counter that a name stands for.

    Raises:
        ValueError: There is none; the message names the nearest.

    >>> figure_named("cv"), figure_named("dropped")
    ('load_cv', 'dropped')
    """
    known = tuple(dict.fromkeys((*METRICS, *COUNTED, *INDEX_METRICS)))
    found = SHORT.get(name, name)
    if found in known:
        return found
    near = difflib.get_close_matches(name, (*known, *SHORT), MOST_LIKELY)
    advice = f"did you mean {' or '.join(near)}" if near else f"there are {', '.join(known)}"
    raise ValueError(f"found no metric {name!r}; {advice}")


def figures_of(window: Snapshot) -> list[tuple[str, dict[str, float | None]]]:
    """Every layer of a window with its figures; what a kind of layer does not have is not there."""
    stats: tuple[RoutingStats | IndexStats, ...] = (*window, *window.indices)
    return [
        (
            item.layer,
            {
                **{name: float(getattr(item, name)) for name in COUNTED if hasattr(item, name)},
                **item.metrics(),
            },
        )
        for item in stats
    ]


def why_withheld(window: Snapshot, layer: str, figure: str) -> str:
    """Why a figure of a layer has no value in a window."""
    for stats in window:
        if stats.layer == layer:
            return stats.withheld()[figure]
    return "it is not known of this window of a table"
