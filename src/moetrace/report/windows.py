"""The windows of one phase as tables: a row per window, a column per layer or per expert.

Letters: W windows, L layers, C cells (the experts of all layers, one layer after the other).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot, merge

__all__ = ["ABSENT", "METRICS", "Layer", "Windows", "grouped", "layers_of", "tabulate"]

ABSENT = -1
"""Stands where a window has no record of a layer; it is no count."""

METRICS = (
    "load_cv",
    "load_cv_floor",
    "max_vio",
    "max_vio_floor",
    "max_vio_excess",
    "load_gini",
    "load_gini_floor",
    "routing_entropy",
    "load_balancing_loss",
    "dead_experts",
)
"""The metrics that the page shows, by their keys in `RoutingStats.metrics`."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What stays the same about one router over the whole run."""

    name: str
    num_experts: int
    top_k: int
    scoring: str


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The windows of one phase.

    Attributes:
        phase: Name of the phase.
        layers: The columns of ``tokens`` and ``metrics``, and, by their experts, of ``cells``.
        spans: First and last step of each window, shape ``(W, 2)``.
        tokens: Routed tokens, shape ``(W, L)``; `ABSENT` where a layer has no record.
        cells: Assignments per expert, shape ``(W, C)``; `ABSENT` likewise.
        metrics: Each of `METRICS`, shape ``(W, L)``; NaN where undefined or withheld.
        withheld: Why layers have no MaxVio against its floor in the last window, by layer.
    """

    phase: str
    layers: tuple[Layer, ...]
    spans: NDArray[np.int64]
    tokens: NDArray[np.int64]
    cells: NDArray[np.int64]
    metrics: dict[str, NDArray[np.float64]]
    withheld: dict[str, str]

    def __len__(self) -> int:
        return len(self.spans)

    def counts(self, layer: int) -> NDArray[np.int64]:
        """Assignments per expert of the layer at this position, shape ``(W, E)``."""
        start = sum(item.num_experts for item in self.layers[:layer])
        return self.cells[:, start : start + self.layers[layer].num_experts]


def layers_of(snapshots: Iterable[Snapshot], names: Sequence[str]) -> tuple[Layer, ...]:
    """The layers called ``names``, in that order; one that was never counted is left out.

    A run resumed with another number of experts keeps the shape that it has in its last window.
    """
    found: dict[str, Layer] = {}
    for snapshot in snapshots:
        for stats in snapshot:
            found[stats.layer] = _shape(stats)
    return tuple(found[name] for name in names if name in found)


def grouped(snapshots: Sequence[Snapshot], count: int) -> list[Sequence[Snapshot]]:
    """Neighbouring windows put together, so that ``count`` groups remain; the last stays alone.

    >>> [len(group) for group in grouped(range(10), 4)]
    [3, 3, 3, 1]
    """
    if len(snapshots) <= max(count, 2):
        return [snapshots[index : index + 1] for index in range(len(snapshots))]
    edges = np.linspace(0, len(snapshots) - 1, max(count, 2)).round().astype(int)
    groups = [snapshots[start:stop] for start, stop in pairwise(edges)]
    return [*groups, snapshots[-1:]]


def tabulate(phase: str, groups: Sequence[Sequence[Snapshot]], layers: Sequence[Layer]) -> Windows:
    """One row per group; the windows of a group are added up first, ratios are formed after.

    Cost: one `RoutingStats.metrics` per group and layer.
    """
    starts = np.cumsum([0, *(layer.num_experts for layer in layers)])
    spans = np.array(
        [(min(s.first_step for s in group), max(s.last_step for s in group)) for group in groups],
        dtype=np.int64,
    ).reshape(-1, 2)
    tokens = np.full((len(groups), len(layers)), ABSENT, dtype=np.int64)
    cells = np.full((len(groups), int(starts[-1])), ABSENT, dtype=np.int64)
    metrics = {name: np.full(tokens.shape, np.nan) for name in METRICS}
    withheld: dict[str, str] = {}
    for row, group in enumerate(groups):
        records = [{stats.layer: stats for stats in snapshot} for snapshot in group]
        for column, layer in enumerate(layers):
            stats = _sum(group, records, layer)
            if stats is None:
                continue
            tokens[row, column] = stats.tokens
            cells[row, starts[column] : starts[column + 1]] = stats.tokens_per_expert
            values = stats.metrics()
            for name in METRICS:
                value = values.get(name)
                metrics[name][row, column] = np.nan if value is None else value
            if row == len(groups) - 1 and values.get("max_vio_excess") is None:
                withheld[layer.name] = stats.withheld()["max_vio_excess"]
    return Windows(phase, tuple(layers), spans, tokens, cells, metrics, withheld)


def _sum(
    group: Sequence[Snapshot], records: Sequence[dict[str, RoutingStats]], layer: Layer
) -> RoutingStats | None:
    """The layer's records of a group added up, or None where it has none of this shape."""
    # layer by layer: pipeline stages may have reported different layers
    found = [
        replace(snapshot, routing=(record[layer.name],))
        for snapshot, record in zip(group, records, strict=True)
        if layer.name in record and _shape(record[layer.name]) == layer
    ]
    if not found:
        return None
    return found[0].routing[0] if len(found) == 1 else merge(found).routing[0]


def _shape(stats: RoutingStats) -> Layer:
    return Layer(stats.layer, stats.num_experts, stats.top_k, stats.scoring)
