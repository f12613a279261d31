# pyright: strict
"""Tables of experts under the names that a tracker shows them with.

``{i}`` in a key is the position of a table among the tables of the model, from 0. Coverage is in
per cent there, as where these names come from.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moetrace.index_stats import IndexStats

__all__ = ["MOST_ROWS", "MOST_TABLES", "hot_rows", "index_summary", "top_experts_table"]

MOST_TABLES = 12
"""Tables with keys of their own where detail per layer is not asked for."""

MOST_ROWS = 1000
"""Rows of the table of hot experts."""


def index_summary(records: Sequence[IndexStats], *, per_layer: bool = False) -> dict[str, float]:
    """The tables of one window in a few numbers; a key is absent where its figure is not known.

    ``expert_usage/hot_experts_count``, ``persistent_hot_experts``, ``worst_coverage`` (per cent),
    ``worst_unevenness`` and ``worst_unevenness_score`` (nats) over all tables, and of the first
    twelve ``expert_usage/layer_{i}_experts_used`` and ``_coverage``: at most 29 keys.

    Args:
        records: The tables of one window, in the model's order.
        per_layer: Those two keys for every table.

    >>> from moetrace.index_stats import index_stats_of
    >>> table = index_stats_of("ffn", np.array([3, 1, 0, 0]))
    >>> index_summary([table])["expert_usage/layer_0_coverage"]
    50.0
    """
    found: dict[str, float] = {}
    worst: dict[str, float] = {}
    for position, record in enumerate(records):
        shown = record.metrics()
        coverage = shown["coverage"]
        if coverage is not None:
            worst["coverage"] = min(100 * coverage, worst.get("coverage", 100.0))
        for name in ("unevenness", "unevenness_score"):
            value = shown[name]
            if value is not None:
                worst[name] = max(value, worst.get(name, 0.0))
        if not per_layer and position >= MOST_TABLES:
            continue
        if record.used is not None:
            found[f"expert_usage/layer_{position}_experts_used"] = float(record.used)
        if coverage is not None:
            found[f"expert_usage/layer_{position}_coverage"] = 100 * coverage
    for name, counts in (
        ("hot_experts_count", [record.hot for record in records]),
        ("persistent_hot_experts", [record.persistent for record in records]),
    ):
        known = [count for count in counts if count is not None]
        if known:
            found[f"expert_usage/{name}"] = float(sum(known))
    return {**found, **{f"expert_usage/worst_{name}": value for name, value in worst.items()}}


def hot_rows(records: Sequence[IndexStats]) -> list[tuple[int, int]]:
    """Hot experts of a window: position of the table and expert, sorted, at most 1000 rows.

    >>> from moetrace.index_stats import index_stats_of
    >>> hot_rows([index_stats_of("ffn", np.array([9, 0, 9, 0]), threshold=1.5)])
    [(0, 0), (0, 2)]
    """
    rows = [
        (position, expert)
        for position, record in enumerate(records)
        for expert in sorted(record.hot_experts)
    ]
    return rows[:MOST_ROWS]


def top_experts_table(records: Sequence[IndexStats]) -> NDArray[np.float64]:
    """Load over the mean of the busiest experts of all tables, a row per table; NaN where unknown.

    Returns:
        Shape ``(tables, experts)``; the experts are the union of every table's twenty busiest, in
        the order of their ids. No columns where nothing is known.
    """
    experts = sorted({expert for record in records for expert in record.shared_experts})
    column = {expert: at for at, expert in enumerate(experts)}
    table = np.full((len(records), len(experts)), np.nan)
    for row, record in enumerate(records):
        for expert, draws in zip(record.shared_experts, record.shared_draws, strict=True):
            if record.draws:
                table[row, column[expert]] = draws * record.num_experts / record.draws
    return table
