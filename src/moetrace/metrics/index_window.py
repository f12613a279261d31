# pyright: strict
"""Every metric of one window of one table of experts, each against what chance shows.

Letters: E experts, M draws.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics.index_floor import (
    coverage_floor,
    dead_sub_keys_floor,
    hot_indices_floor,
    hot_overlap_floor,
    mutual_information_floor,
    unevenness_floor,
    unevenness_score_floor,
)
from moetrace.metrics.index_usage import unevenness
from moetrace.metrics.sub_keys import dead_sub_keys

__all__ = ["INDEX_METRICS", "index_metrics"]

INDEX_METRICS = (
    "draws",
    "experts_used",
    "coverage",
    "coverage_floor",
    "coverage_excess",
    "avg_usage",
    "max_over_avg",
    "usage_cv",
    "usage_cv_floor",
    "usage_cv_excess",
    "unevenness",
    "unevenness_floor",
    "unevenness_excess",
    "unevenness_score",
    "unevenness_score_floor",
    "unevenness_score_excess",
    "row_unevenness",
    "row_unevenness_floor",
    "row_unevenness_excess",
    "column_unevenness",
    "column_unevenness_floor",
    "column_unevenness_excess",
    "mutual_information",
    "mutual_information_floor",
    "mutual_information_excess",
    "dead_rows",
    "dead_rows_floor",
    "dead_rows_excess",
    "dead_columns",
    "dead_columns_floor",
    "dead_columns_excess",
    "hot_indices",
    "hot_indices_floor",
    "hot_indices_excess",
    "sure_hot_indices",
    "persistent_hot_indices",
    "hot_overlap",
    "hot_overlap_floor",
    "rank_slope",
)
"""Keys of `index_metrics`, in its order."""


def index_metrics(
    counted: Mapping[str, float | None],
    *,
    draws: int,
    num_experts: int,
    threshold: float = 5.0,
    scores: tuple[float, float] | None = None,
    row_draws: NDArray[np.integer[Any]] | None = None,
    column_draws: NDArray[np.integer[Any]] | None = None,
) -> dict[str, float | None]:
    """Every metric of `INDEX_METRICS`; None where it is undefined or cannot be known.

    Args:
        counted: What the draws reduce to, by its key in `INDEX_METRICS`; None where unknown.
        draws: M.
        num_experts: E.
        threshold: Multiplier of the mean from which an expert is hot.
        scores: Sum of all scores and of their squares, where scores are seen.
        row_draws: Draws per sub-key of the first half of a product key, where there are any.
        column_draws: The same of the second half.

    >>> found = index_metrics({"coverage": 0.5}, draws=4, num_experts=4)
    >>> found["coverage"], round(found["coverage_floor"] or 0, 4), found["unevenness"]
    (0.5, 0.6321, None)
    """
    values: dict[str, float | None] = dict.fromkeys(INDEX_METRICS)
    values["draws"], values["avg_usage"] = float(draws), draws / num_experts
    if not draws:
        return values
    known = dict(counted)
    floors: dict[str, float] = {
        "coverage": coverage_floor(draws, num_experts=num_experts),
        "usage_cv": (draws / num_experts) ** -0.5,
        "unevenness": unevenness_floor(draws, num_experts=num_experts),
        "hot_indices": hot_indices_floor(draws, num_experts=num_experts, threshold=threshold),
    }
    if scores is not None:
        floors["unevenness_score"] = unevenness_score_floor(*scores, num_experts=num_experts)
    if row_draws is not None and column_draws is not None and column_draws.size:
        _sub_keys(known, floors, draws, row_draws, column_draws)
    for name, value in known.items():
        values[name] = _number(value)
    for name, floor in floors.items():
        value, chance = values[name], _number(floor)
        values[f"{name}_floor"] = chance
        if value is not None and chance is not None:
            values[f"{name}_excess"] = value - chance
    hot = known.get("hot_indices")
    if hot is not None:
        values["hot_overlap_floor"] = hot_overlap_floor(int(hot), num_experts=num_experts)
    return values


def _sub_keys(
    known: dict[str, float | None],
    floors: dict[str, float],
    draws: int,
    row_draws: NDArray[np.integer[Any]],
    column_draws: NDArray[np.integer[Any]],
) -> None:
    for name, found in (("row", row_draws), ("column", column_draws)):
        known[f"{name}_unevenness"] = unevenness(found)
        floors[f"{name}_unevenness"] = unevenness_floor(draws, num_experts=found.size)
        known[f"dead_{name}s"] = dead_sub_keys(found)
        floors[f"dead_{name}s"] = dead_sub_keys_floor(draws, sub_keys=found.size)
    whole, rows, columns = (
        known.get(name) for name in ("unevenness", "row_unevenness", "column_unevenness")
    )
    if whole is not None and rows is not None and columns is not None:
        known["mutual_information"] = max(0.0, whole - rows - columns)
        floors["mutual_information"] = mutual_information_floor(
            draws, rows=row_draws.size, columns=column_draws.size
        )


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
