# pyright: strict
"""The frozen host record of one window: what one process counted over a span of optimizer steps.

A snapshot is a delta: it holds what happened in its window, never since the start. It holds
integers; sums of reals are in the fixed point of `moetrace.layout`. Means and ratios are formed
from it when somebody asks, after everything that should be added has been added.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from moetrace.gradient_stats import GradientStats, gradient_summary
from moetrace.index_keys import index_summary
from moetrace.index_stats import IndexStats
from moetrace.metrics import METRICS, EverUsed, LayerSpread, layer_detail, layer_summary, spread
from moetrace.notebook import layers_html, notebook_html
from moetrace.printable import span_text
from moetrace.probe_stats import joined, stored_fields
from moetrace.routing_stats import RoutingStats, merge_stats
from moetrace.weight_stats import WeightStats, weight_summary

__all__ = ["PROBES", "SCHEMA", "Snapshot", "merge", "with_never_used"]

SCHEMA = 1
"""Version of the snapshot's fields; it rises when the meaning of a field changes."""

PROBES: Mapping[str, type[Any]] = {
    "indices": IndexStats,
    "weights": WeightStats,
    "gradients": GradientStats,
}
"""Fields of a snapshot that probes beside routing fill, and the class of their records."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What one process counted in one window of one phase.

    Attributes:
        run_id: Name of the run, the same for all of its ranks and attempts.
        rank: Rank of the process that counted.
        attempt: Which process life of the run, from 0.
        seq: Position among the snapshots of this process, from 0.
        phase: ``"train"``, ``"eval"``, ``"rollout"``, ``"aborted"`` or a name that the user gave.
        first_step: First optimizer step of the window; the first finished step of a run is 1.
        last_step: Last optimizer step of the window.
        wall_time: Unix time at which the window closed, seconds; informative only, never an order.
        routing: One record per router, in the model's order.
        health: The tracer's own state when the window closed: numbers and short strings by name.
        schema: Version of these fields.
        indices: One record per table of experts whose look-ups are counted, without its counts.
        weights: One record per tensor of a router, where they are followed.
        gradients: One record per block, group and part of the parameters, where they are measured.
    """

    run_id: str
    rank: int
    attempt: int
    seq: int
    phase: str
    first_step: int
    last_step: int
    wall_time: float
    routing: tuple[RoutingStats, ...]
    health: Mapping[str, Any] = field(default_factory=dict[str, Any])
    schema: int = SCHEMA
    indices: tuple[IndexStats, ...] = ()
    weights: tuple[WeightStats, ...] = ()
    gradients: tuple[GradientStats, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the sites, in the model's order."""
        return tuple(stats.layer for stats in self.routing)

    def __iter__(self) -> Iterator[RoutingStats]:
        return iter(self.routing)

    def _repr_html_(self) -> str:
        """What a notebook shows; see `moetrace.notebook`."""
        steps = span_text(self.first_step, self.last_step)
        facts = [("phase", self.phase), ("", steps), ("rank", str(self.rank))]
        return notebook_html(f"snapshot of {self.run_id}", facts, layers_html(self.routing))

    def __getitem__(self, layer: str) -> RoutingStats:
        for stats in self.routing:
            if stats.layer == layer:
                return stats
        raise KeyError(f"no layer {layer!r}; the layers are {', '.join(self.layers)}")

    def spread(
        self, metric: str, *, worst: Literal["highest", "lowest"] = "highest"
    ) -> LayerSpread | None:
        """One metric of `RoutingStats.metrics` over the layers: percentiles and the worst layer.

        Args:
            metric: A key of `RoutingStats.metrics`.
            worst: Which end is bad.

        Returns:
            The spread, or None where no layer has the metric.

        Raises:
            KeyError: There is no such metric.
        """
        if metric not in METRICS:
            raise KeyError(f"no metric {metric!r}; the metrics are {', '.join(METRICS)}")
        return spread({stats.layer: stats.metrics()[metric] for stats in self}, worst=worst)

    def metrics(self, *, per_layer: bool = False) -> dict[str, float]:
        """The window in a few numbers, under the names that a tracker shows them with.

        At most 15 keys, whatever the model's size, and 29 more where tables of experts are
        counted, nine of gradients, five of router weights; never NaN: a key is absent where no
        layer has its metric. Means are over layers, unweighted.

        Args:
            per_layer: Add ``moe/{layer}/{metric}``, five keys a layer, and what the probes have of
                each.

        >>> import numpy as np
        >>> counts = np.array([3, 1])
        >>> stats = RoutingStats("mlp", 2, 1, "none", counts, counts * 0, counts * 0, tokens=4)
        >>> Snapshot("run", 0, 0, 0, "train", 1, 1, 0.0, (stats,)).metrics()["moe/worst_max_vio"]
        0.5
        """
        by_layer = {stats.layer: stats.metrics() for stats in self}
        summary = layer_summary(by_layer)
        never = self.health.get("never_used_experts")
        if isinstance(never, int) and not isinstance(never, bool):
            summary["moe/total_unused_experts"] = float(never)
        summary["moe/dropped_assignments"] = float(sum(stats.dropped for stats in self))
        summary["moe/nonfinite_tokens"] = float(sum(stats.nonfinite for stats in self))
        if any(stats.identity_experts for stats in self):
            summary["moe/identity_assignments"] = float(sum(stats.identity for stats in self))
        if per_layer:
            summary.update(layer_detail(by_layer))
        summary.update(index_summary(self.indices, per_layer=per_layer))
        summary.update(weight_summary(self.weights, per_layer=per_layer))
        summary.update(gradient_summary(self.gradients, per_layer=per_layer))
        return summary

    def to_dict(self) -> dict[str, Any]:
        """The snapshot as plain numbers, strings, lists and dicts; `from_dict` reads it back."""
        record: dict[str, Any] = {
            item.name: getattr(self, item.name) for item in fields(self) if item.name != "routing"
        }
        record["health"] = dict(self.health)
        for name in PROBES:
            record[name] = [
                {entry: getattr(item, entry) for entry in stored_fields(item)}
                for item in getattr(self, name)
            ]
        record["routing"] = [stats.to_dict() for stats in self.routing]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The snapshot that `to_dict` wrote.

        Raises:
            ValueError: A field is missing or unknown, or the schema is a later one.
        """
        if record.get("schema") != SCHEMA:
            raise ValueError(
                f"found snapshot schema {record.get('schema')!r}, this version reads {SCHEMA}; "
                "read it with the moetrace that wrote it or a later one"
            )
        try:
            routing = tuple(RoutingStats(**stats) for stats in record["routing"])
            known: dict[str, Any] = {**record, "routing": routing}
            for name, kind in PROBES.items():
                known[name] = tuple(kind(**item) for item in record.get(name, ()))
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a snapshot: {error}") from error


def merge(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Add windows of one phase: neighbours in time, or the same steps of several ranks.

    Counts and fixed-point sums add; the records of the other probes join as each of them says; the
    span covers all of them; the rest is taken from the last.

    Raises:
        ValueError: There is nothing to merge, or the phases or layers differ.
    """
    if not snapshots:
        raise ValueError("nothing to merge: the list of snapshots is empty")
    last = snapshots[-1]
    if any(snapshot.phase != last.phase for snapshot in snapshots):
        raise ValueError(f"phases differ: {sorted({snapshot.phase for snapshot in snapshots})}")
    if any(snapshot.layers != last.layers for snapshot in snapshots):
        raise ValueError("layers differ: where pipeline stages differ, merge layer by layer")
    routing = tuple(
        merge_stats([snapshot.routing[index] for snapshot in snapshots])
        for index in range(len(last.routing))
    )
    probed: dict[str, Any] = {
        name: joined([(part.rank, getattr(part, name)) for part in snapshots]) for name in PROBES
    }
    return Snapshot(
        run_id=last.run_id,
        rank=last.rank,
        attempt=last.attempt,
        seq=last.seq,
        phase=last.phase,
        first_step=min(snapshot.first_step for snapshot in snapshots),
        last_step=max(snapshot.last_step for snapshot in snapshots),
        wall_time=max(snapshot.wall_time for snapshot in snapshots),
        routing=routing,
        health=last.health,
        **probed,
    )


def with_never_used(
    snapshot: Snapshot, used: EverUsed
) -> tuple[Snapshot, dict[str, list[list[int]]]]:
    """A training window that says how many experts no training window so far has used.

    Args:
        snapshot: The window; of another phase than ``train`` it is returned as it is.
        used: What the windows before have used; takes this one.

    Returns:
        The snapshot with ``health["never_used_experts"]``, and the experts that it used first, as
        spans ``[first, last + 1]`` by layer.
    """
    if snapshot.phase != "train":
        return snapshot, {}
    first = {
        stats.layer: spans
        for stats in snapshot
        if (spans := used.note(stats.layer, stats.tokens_per_expert))
    }
    never = sum(used.never(stats.layer) for stats in snapshot)
    return replace(snapshot, health={**snapshot.health, "never_used_experts": never}), first
