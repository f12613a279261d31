# pyright: strict
"""The figures that a rule may name: every metric of a layer, its counters, and short names."""

import difflib

from moetrace.metrics import METRICS

__all__ = ["COUNTED", "SHORT", "figure_named"]

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
    known = (*METRICS, *COUNTED)
    found = SHORT.get(name, name)
    if found in known:
        return found
    near = difflib.get_close_matches(name, (*known, *SHORT), MOST_LIKELY)
    advice = f"did you mean {' or '.join(near)}" if near else f"there are {', '.join(known)}"
    raise ValueError(f"found no metric {name!r}; {advice}")
