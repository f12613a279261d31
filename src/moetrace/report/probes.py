"""Router weights and gradients over the windows of a phase, where a run recorded them.

Letters: W windows, C columns: the tensors of the routers, or the groups of parameters.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetrace.gradient_stats import GradientStats, norm_of
from moetrace.parameter_groups import GROUPS
from moetrace.snapshot import Snapshot
from moetrace.weight_stats import WeightStats

__all__ = ["WEIGHTS", "Series", "group_norms", "router_norms", "untrained", "weight_series"]

MOST = 512
"""Columns of one series that a page draws: the first ones, in the model's order."""

WEIGHTS: dict[str, Callable[[WeightStats], float | None]] = {
    "norm": lambda record: record.norm,
    "update_ratio": lambda record: record.update_ratio,
    "drift": lambda record: record.drift,
    "row_norm_cv": lambda record: record.row_norm_cv,
}
"""What is drawn of a router's weights, by the names in `WeightStats`."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Curves over the windows of a phase.

    Attributes:
        columns: What each curve is of: layer and name of a tensor, or a group alone.
        values: Each figure, shape ``(W, C)``; NaN where a window has none.
    """

    columns: tuple[tuple[str, str], ...]
    values: dict[str, NDArray[np.float64]]

    def rows(self, picked: Sequence[int]) -> "Series":
        """The windows at these positions alone."""
        at = np.asarray(picked, dtype=np.int64)
        return Series(self.columns, {name: table[at] for name, table in self.values.items()})


def weight_series(history: Sequence[Snapshot]) -> Series:
    """Norm, update per step, drift and spread of the rows of each router tensor, per window."""
    keys = list(dict.fromkeys(item.key for window in history for item in window.weights))[:MOST]
    place = {key: at for at, key in enumerate(keys)}
    values = {name: np.full((len(history), len(keys)), np.nan) for name in WEIGHTS}
    for row, window in enumerate(history):
        for record in window.weights:
            if record.key in place:
                for name, figure in WEIGHTS.items():
                    values[name][row, place[record.key]] = _finite(figure(record))
    return Series(tuple(keys), values)


def group_norms(history: Sequence[Snapshot]) -> Series:
    """Norm of the gradient of each group of parameters, over the whole model, per window."""
    groups = [g for g in GROUPS if any(r.group == g for w in history for r in w.gradients)]
    table = np.full((len(history), len(groups)), np.nan)
    for row, window in enumerate(history):
        for column, group in enumerate(groups):
            table[row, column] = _norm([r for r in window.gradients if r.group == group])
    return Series(tuple(("", group) for group in groups), {"norm": table})


def router_norms(history: Sequence[Snapshot]) -> Series:
    """Norm of the gradient of each block's router, per window."""
    blocks = list(
        dict.fromkeys(r.layer for w in history for r in w.gradients if r.group == "router")
    )[:MOST]
    table = np.full((len(history), len(blocks)), np.nan)
    for row, window in enumerate(history):
        by_block: dict[str, list[GradientStats]] = {}
        for record in window.gradients:
            if record.group == "router":
                by_block.setdefault(record.layer, []).append(record)
        for column, block in enumerate(blocks):
            table[row, column] = _norm(by_block.get(block, []))
    return Series(tuple((block, "router") for block in blocks), {"norm": table})


def untrained(window: Snapshot) -> list[WeightStats]:
    """Router tensors that require a gradient and did not change since the window before."""
    return [
        record
        for record in window.weights
        if record.trainable and record.steps > 0 and record.unchanged_fraction == 1.0
    ]


def _norm(records: Sequence[GradientStats]) -> float:
    # what was clipped and what was not are two measurements of one gradient, never one sum
    before = [record for record in records if record.measured == "pre_clip"]
    return _finite(norm_of(before or records))


def _finite(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value
