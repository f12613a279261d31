# pyright: strict
"""The usage of tables of experts as the one dict that users of an expert-usage tracker know."""

from collections.abc import Sequence
from typing import Any

from moetrace.index_keys import hot_rows
from moetrace.index_stats import IndexStats

__all__ = ["usage_summary"]


def usage_summary(records: Sequence[IndexStats], *, tokens: int) -> dict[str, Any]:
    """Tokens, hot experts and layers of one window.

    ``hot_experts`` holds ``[layer, expert]`` pairs, sorted, at most 100 a layer and 1000 in all;
    ``hot_experts_count`` counts them all. ``usage_coverage`` is in per cent. What is not known is
    None, as where ranks were added without their counts.

    Args:
        records: The tables of the window; their positions are the numbers of the layers.
        tokens: Tokens of all windows so far.

    >>> import numpy as np
    >>> from moetrace.index_stats import index_stats_of
    >>> found = usage_summary([index_stats_of("0", np.array([6, 1, 0, 1, 0, 0, 0, 0]))], tokens=8)
    >>> found["hot_experts"], found["layer_stats"][0]
    ([[0, 0]], {'experts_used': 3, 'usage_coverage': 37.5, 'avg_usage': 1.0})
    """
    hot = [record.hot for record in records]
    return {
        "total_tokens_processed": tokens,
        "hot_experts_count": None if None in hot else sum(count or 0 for count in hot),
        "hot_experts": [list(row) for row in hot_rows(records)],
        "layer_stats": {
            position: {
                "experts_used": record.used,
                "usage_coverage": None if record.coverage is None else 100 * record.coverage,
                "avg_usage": record.draws / record.num_experts,
            }
            for position, record in enumerate(records)
        },
    }
