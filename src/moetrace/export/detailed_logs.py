# pyright: strict
"""A run in the files of a MoE monitoring callback: ``detailed_log_step_{N}.json``, one a window."""

import math
from collections.abc import Mapping
from typing import Any

from moetrace.export.files import Drafts, json_text
from moetrace.metrics import layer_detail
from moetrace.run import Run
from moetrace.snapshot import Snapshot

__all__ = ["detailed_log", "write_detailed_logs"]


def detailed_log(snapshot: Snapshot) -> dict[str, Any]:
    """One window: ``step``, ``timestamp``, ``summary``, and ``metrics`` by layer.

    A layer's metrics stand under their own names and under those of the callback (``expert_cv``,
    ``max_usage_ratio``, ``unused_experts``, ``active_experts``, ``routing_entropy``); None where
    one is undefined.
    """
    by_layer = {stats.layer: stats.metrics() for stats in snapshot}
    return {
        "step": snapshot.last_step,
        "timestamp": snapshot.wall_time,
        "summary": _finite(snapshot.metrics()),
        "metrics": {
            layer: {**_finite(row), **_short_names(layer_detail({layer: row}))}
            for layer, row in by_layer.items()
        },
    }


def write_detailed_logs(run: Run, drafts: Drafts) -> int:
    """Write a file per training window.

    Args:
        run: The run.
        drafts: Where to.

    Returns:
        How many windows there are.

    Raises:
        ValueError: There is none.
    """
    windows = 0
    for window in run.windows():
        name = f"detailed_log_step_{int(window.last_step)}.json"
        drafts.write(name, json_text(detailed_log(window)))
        windows += 1
    if not windows:
        raise ValueError(
            "found no training window in this run; the first is written when it closes"
        )
    return windows


def _short_names(detail: Mapping[str, float]) -> dict[str, float | None]:
    return _finite({key.rpartition("/")[2]: value for key, value in detail.items()})


def _finite(row: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in row.items()
    }
