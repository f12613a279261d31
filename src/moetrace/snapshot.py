# pyright: strict
"""The frozen host record of one window: what one process counted over a span of optimizer steps.

A snapshot is a delta: it holds what happened in its window, never since the start. It holds
integers; sums of reals are in the fixed point of `moetrace.layout`. Means and ratios are formed
from it when somebody asks, after everything that should be added has been added.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from moetrace.layout import FRACTION_BITS, SCALARS, decode
from moetrace.metrics import (
    METRICS,
    LayerSpread,
    ScoreSums,
    layer_detail,
    layer_summary,
    spread,
    window_metrics,
)

__all__ = ["SCHEMA", "RoutingStats", "Snapshot", "merge"]

SCHEMA = 1
"""Version of the snapshot's fields; it rises when the meaning of a field changes."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RoutingStats:
    """What one router did in one window.

    Attributes:
        layer: Name of the site: the dotted name of its MoE block.
        num_experts: E, experts that can be routed to; shared experts are not counted.
        top_k: K, experts chosen per token.
        scoring: How logits become probabilities, a name in `moetrace.layout.SCORINGS`, or
            ``"none"`` where the router shows no logits; then every sum of reals but
            ``gate_weight_sum`` is 0 and means nothing.
        tokens_per_expert: Assignments per expert, shape ``(E,)``, before dropping where the router
            shows them. They add up to ``tokens * top_k - out_of_range - dropped``.
        prob_sum: Sum over tokens of the router's probability, shape ``(E,)``, fixed point.
        gate_weight_sum: Sum of the mixing weights each expert got, shape ``(E,)``, fixed point.
        tokens: Routed tokens, padding excluded.
        calls: Forwards of the router.
        masked: Padding tokens, left out of every other number.
        dropped: Assignments that a capacity limit left out of what the router shows.
        nonfinite: Tokens with NaN or infinite logits: counted in ``tokens`` and
            ``tokens_per_expert``, left out of the sums of reals.
        out_of_range: Assignments to an expert id outside ``[0, E)``.
        entropy_sum: Sum of the token routing entropies, nats, fixed point.
        confidence_sum: Sum of the largest probability of each token, fixed point.
        margin_sum: Sum over tokens of the lowest log probability chosen minus the highest not
            chosen, nats, fixed point. For softmax that is the difference of the logits. Negative
            where a correction bias or a group limit overrules the logits.
        lse_sum: Sum of the log-sum-exp of the logits, fixed point.
        lse_sq_sum: Sum of its square, fixed point.
    """

    layer: str
    num_experts: int
    top_k: int
    scoring: str
    tokens_per_expert: Counts
    prob_sum: Counts
    gate_weight_sum: Counts
    tokens: int = 0
    calls: int = 0
    masked: int = 0
    dropped: int = 0
    nonfinite: int = 0
    out_of_range: int = 0
    entropy_sum: int = 0
    confidence_sum: int = 0
    margin_sum: int = 0
    lse_sum: int = 0
    lse_sq_sum: int = 0

    def __post_init__(self) -> None:
        for name in VECTORS:
            array: Counts = np.asarray(getattr(self, name), dtype=np.int64)
            if array.shape != (self.num_experts,):
                raise ValueError(
                    f"{name} of {self.layer}: found shape {array.shape}, "
                    f"expected ({self.num_experts},)"
                )
            if array.flags.writeable:
                array = array.copy()
                array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def scored_tokens(self) -> int:
        """Tokens behind the sums of reals: the denominator of every mean of them."""
        return 0 if self.scoring == "none" else self.tokens - self.nonfinite

    def mean(self, name: str) -> float | None:
        """Mean per token of a scalar sum of reals, or None where nothing was scored.

        >>> zeros = np.zeros(2, np.int64)
        >>> stats = RoutingStats("mlp", 2, 1, "softmax", zeros, zeros, zeros, tokens=4,
        ...                      entropy_sum=2 << 26)
        >>> stats.mean("entropy_sum")
        0.5
        """
        if self.scored_tokens == 0:
            return None
        return int(getattr(self, name)) / float(1 << FRACTION_BITS[name]) / self.scored_tokens

    def decoded(self, name: str) -> NDArray[np.float64]:
        """A per-expert sum of reals as float64, shape ``(E,)``."""
        return np.asarray(getattr(self, name)) / float(1 << FRACTION_BITS[name])

    def metrics(self) -> dict[str, float | None]:
        """Every metric of this window of this layer, by name; never NaN.

        What each means, its unit and its healthy range stand in ``docs/metrics.md``. None marks a
        metric that is undefined or withheld; `withheld` says why.

        >>> counts = np.array([3, 1])
        >>> stats = RoutingStats("mlp", 2, 1, "none", counts, counts * 0, counts * 0, tokens=4)
        >>> stats.metrics()["max_vio"], stats.metrics()["z_loss"]
        (0.5, None)
        """
        values, _ = self._window()
        return {name: values.get(name) for name in METRICS}

    def withheld(self) -> dict[str, str]:
        """Why each metric that `metrics` gives as None has no value, by name.

        >>> counts = np.array([3, 1])
        >>> stats = RoutingStats("mlp", 2, 1, "softmax", counts, counts * 0, counts * 0, tokens=5)
        >>> stats.withheld()["max_vio"]
        'found 4 assignments where tokens * top_k is 5'
        """
        return self._window()[1]

    def _window(self) -> tuple[dict[str, float], dict[str, str]]:
        return window_metrics(
            self.tokens_per_expert,
            tokens=self.tokens,
            top_k=self.top_k,
            out_of_range=self.out_of_range,
            dropped=self.dropped,
            scores=self._scores(),
        )

    def _scores(self) -> ScoreSums | None:
        if self.scoring == "none":
            return None
        return ScoreSums(
            tokens=self.scored_tokens,
            prob_sum=self.decoded("prob_sum"),
            entropy=decode("entropy_sum", self.entropy_sum),
            confidence=decode("confidence_sum", self.confidence_sum),
            margin=decode("margin_sum", self.margin_sum),
            lse_sq=None
            if self.scoring == "probabilities"
            else decode("lse_sq_sum", self.lse_sq_sum),
        )


VECTORS = ("tokens_per_expert", "prob_sum", "gate_weight_sum")
"""The fields of `RoutingStats` with one entry per expert, in the order of the accumulator."""

COUNTERS = (*SCALARS, "out_of_range")
"""The scalar fields of `RoutingStats` that add when windows merge."""


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

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the sites, in the model's order."""
        return tuple(stats.layer for stats in self.routing)

    def __iter__(self) -> Iterator[RoutingStats]:
        return iter(self.routing)

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

        At most 13 keys, whatever the model's size, and never NaN: a key is absent where no layer
        has its metric. Means are over layers, unweighted.

        Args:
            per_layer: Add ``moe/{layer}/{metric}``, five keys a layer.

        >>> counts = np.array([3, 1])
        >>> stats = RoutingStats("mlp", 2, 1, "none", counts, counts * 0, counts * 0, tokens=4)
        >>> Snapshot("run", 0, 0, 0, "train", 1, 1, 0.0, (stats,)).metrics()["moe/worst_max_vio"]
        0.5
        """
        by_layer = {stats.layer: stats.metrics() for stats in self}
        summary = layer_summary(by_layer)
        summary["moe/dropped_assignments"] = float(sum(stats.dropped for stats in self))
        summary["moe/nonfinite_tokens"] = float(sum(stats.nonfinite for stats in self))
        if per_layer:
            summary.update(layer_detail(by_layer))
        return summary

    def to_dict(self) -> dict[str, Any]:
        """The snapshot as plain numbers, strings, lists and dicts; `from_dict` reads it back."""
        record: dict[str, Any] = {
            item.name: getattr(self, item.name) for item in fields(self) if item.name != "routing"
        }
        record["health"] = dict(self.health)
        record["routing"] = [_plain(stats) for stats in self.routing]
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
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a snapshot: {error}") from error


def merge(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Add windows of one phase: neighbours in time, or the same steps of several ranks.

    Counts and fixed-point sums add; the span covers all of them; the rest is taken from the last.

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
        _merged([snapshot.routing[index] for snapshot in snapshots])
        for index in range(len(last.routing))
    )
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
    )


def _merged(stats: Sequence[RoutingStats]) -> RoutingStats:
    last = stats[-1]
    if any(item.num_experts != last.num_experts for item in stats):
        raise ValueError(f"{last.layer} has {[item.num_experts for item in stats]} experts")
    sums: dict[str, Any] = {
        name: np.sum([getattr(item, name) for item in stats], axis=0) for name in VECTORS
    }
    sums.update({name: sum(int(getattr(item, name)) for item in stats) for name in COUNTERS})
    return RoutingStats(
        layer=last.layer,
        num_experts=last.num_experts,
        top_k=last.top_k,
        scoring=last.scoring,
        **sums,
    )


def _plain(stats: RoutingStats) -> dict[str, Any]:
    record: dict[str, Any] = {item.name: getattr(stats, item.name) for item in fields(stats)}
    for name in VECTORS:
        record[name] = record[name].tolist()
    return record
