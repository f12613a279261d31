# pyright: strict
"""The tables of an export: their columns, and what one window adds to each."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from moetrace.gradient_stats import norm_of
from moetrace.index_stats import INDEX_METRICS
from moetrace.metrics import METRICS
from moetrace.routing_stats import COUNTERS
from moetrace.snapshot import Snapshot

__all__ = [
    "EVENTS",
    "EXPERTS",
    "GRADIENTS",
    "INDICES",
    "LAYERS",
    "WEIGHTS",
    "Batch",
    "Kind",
    "Table",
    "finite",
]

Kind: TypeAlias = Literal["int", "float", "text", "bool"]
"""What stands in a column; any of it may be missing."""

Batch: TypeAlias = Mapping[str, Sequence[Any]]
"""Rows of a table, column by column."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        name: Its name, and that of its file.
        columns: What stands in each column, by its name, in their order.
        rows: The rows of one window, column by column.
    """

    name: str
    columns: Mapping[str, Kind]
    rows: Callable[[Snapshot], Batch]


_WINDOW: dict[str, Kind] = {"phase": "text", "first_step": "int", "last_step": "int"}

_LAYER: dict[str, Kind] = {
    **_WINDOW,
    "layer": "text",
    "num_experts": "int",
    "top_k": "int",
    "scoring": "text",
    **dict.fromkeys((name for name in COUNTERS if not name.endswith("_sum")), "int"),
    **dict.fromkeys(METRICS, "float"),
}

_EXPERT: dict[str, Kind] = {
    **_WINDOW,
    "layer": "text",
    "expert": "int",
    "tokens": "int",
    "prob_sum": "float",
    "gate_weight_sum": "float",
}

_WEIGHT_TEXT = ("layer", "name", "dtype")
_WEIGHT_INT = ("numel", "steps", "nonfinite", "rows")
_WEIGHT_FLOAT = (
    *("mean", "std", "min", "max", "norm"),
    *("diff_mean", "diff_std", "diff_max", "diff_norm", "relative_change", "update_ratio"),
    *("drift", "cosine_to_init", "unchanged_fraction"),
    *("row_norm_mean", "row_norm_cv", "row_min", "row_max"),
    *("cos_abs", "cos_max", "orthogonality", "sigma_max", "stable_rank"),
)
_WEIGHT: dict[str, Kind] = {
    **_WINDOW,
    **dict.fromkeys(_WEIGHT_TEXT, "text"),
    "shape": "text",
    **dict.fromkeys(("trainable", "sharded"), "bool"),
    **dict.fromkeys(_WEIGHT_INT, "int"),
    **dict.fromkeys(_WEIGHT_FLOAT, "float"),
}

_GRADIENT: dict[str, Kind] = {
    **_WINDOW,
    **dict.fromkeys(("layer", "group", "part", "measured"), "text"),
    "sharded": "bool",
    **dict.fromkeys(("numel", "steps", "nonfinite"), "int"),
    **dict.fromkeys(("scale", "sum_sq", "norm", "last_norm"), "float"),
}

_INDEX_INT = (
    *("num_experts", "columns", "tokens", "calls", "masked", "out_of_range", "nonfinite"),
    "highest",
)
_INDEX: dict[str, Kind] = {
    **_WINDOW,
    "layer": "text",
    **dict.fromkeys(_INDEX_INT, "int"),
    "threshold": "float",
    **dict.fromkeys(INDEX_METRICS, "float"),
}

_EVENT: dict[str, Kind] = {
    "wall_time": "float",
    "rank": "int",
    "attempt": "int",
    "kind": "text",
    "fields": "text",
}


def _columns(names: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> Batch:
    return {name: [row[name] for row in rows] for name in names}


def _window(window: Snapshot) -> dict[str, Any]:
    return {name: getattr(window, name) for name in _WINDOW}


def _layers(window: Snapshot) -> Batch:
    own = [name for name in _LAYER if name not in _WINDOW and name not in METRICS]
    rows = [
        {
            **_window(window),
            **{name: getattr(stats, name) for name in own},
            **stats.metrics(),
        }
        for stats in window
    ]
    return _columns(_LAYER, rows)


def _experts(window: Snapshot) -> Batch:
    sizes = [stats.num_experts for stats in window]
    total = sum(sizes)
    vectors: dict[str, list[Any]] = {
        "tokens": [stats.tokens_per_expert for stats in window],
        "prob_sum": [stats.decoded("prob_sum") for stats in window],
        "gate_weight_sum": [stats.decoded("gate_weight_sum") for stats in window],
    }
    names = (
        name for name, size in zip(window.layers, sizes, strict=True) for name in [name] * size
    )
    return {
        **{name: [value] * total for name, value in _window(window).items()},
        "layer": list(names),
        "expert": [expert for size in sizes for expert in range(size)],
        **{name: np.concatenate(found).tolist() for name, found in vectors.items() if found},
    }


def _weights(window: Snapshot) -> Batch:
    own = [name for name in _WEIGHT if name not in _WINDOW and name != "shape"]
    rows = [
        {
            **_window(window),
            **{name: getattr(item, name) for name in own},
            "shape": "x".join(map(str, item.shape)),
        }
        for item in window.weights
    ]
    return _columns(_WEIGHT, rows)


def _gradients(window: Snapshot) -> Batch:
    own = [name for name in _GRADIENT if name not in _WINDOW and name != "last_norm"]
    rows = [
        {
            **_window(window),
            **{name: getattr(item, name) for name in own},
            "last_norm": norm_of([item], last=True),
        }
        for item in window.gradients
    ]
    return _columns(_GRADIENT, rows)


def _indices(window: Snapshot) -> Batch:
    own = [name for name in _INDEX if name not in _WINDOW and name not in INDEX_METRICS]
    rows = [
        {
            **_window(window),
            **{name: getattr(item, name) for name in own},
            **item.metrics(),
        }
        for item in window.indices
    ]
    return _columns(_INDEX, rows)


def _none(window: Snapshot) -> Batch:
    return {}


LAYERS = Table("layers", _LAYER, _layers)
"""A row per window and layer: its counters and every metric."""

EXPERTS = Table("experts", _EXPERT, _experts)
"""A row per window, layer and expert: its assignments, and its sums of reals as real numbers."""

WEIGHTS = Table("weights", _WEIGHT, _weights)
"""A row per window and tensor of a router, where they are followed."""

GRADIENTS = Table("gradients", _GRADIENT, _gradients)
"""A row per window, block, group and part, where gradients are measured."""

INDICES = Table("indices", _INDEX, _indices)
"""A row per window and table of experts, where look-ups are counted: counters and every metric."""

EVENTS = Table("events", _EVENT, _none)
"""A row per event of the run; no window adds to it."""


def finite(value: Any) -> Any:
    """The value, or None for a number that is not finite.

    >>> finite(float("nan")), finite(2)
    (None, 2)
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value
