# pyright: strict
"""What one router did in one window: integers; means and metrics are formed when asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.layout import FRACTION_BITS, SATURATED, SCALARS, decode
from moetrace.metrics import METRICS, SHOWN, ScoreSums, shown_metrics, window_metrics

__all__ = ["COUNTERS", "VECTORS", "RoutingStats", "merge_stats", "shown_columns"]

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RoutingStats:
    """What one router did in one window.

    Attributes:
        layer: Name of the site: the dotted name of its MoE block.
        num_experts: E, experts that can be routed to; shared experts are not counted, and identity
            experts neither.
        top_k: K, experts chosen per token; 0 where that varies from token to token.
        scoring: How logits become probabilities, a name in `moetrace.layout.SCORINGS`, or
            ``"none"`` where the router shows no logits; then every sum of reals but
            ``gate_weight_sum`` is 0 and means nothing.
        tokens_per_expert: Assignments per expert, shape ``(E,)``, before dropping where the router
            shows them; then they add up to ``tokens * top_k - out_of_range - identity``, and
            otherwise to ``dropped`` less.
        prob_sum: Sum over tokens of the router's probability, shape ``(E,)``, fixed point.
        gate_weight_sum: Sum of the mixing weights each expert got, shape ``(E,)``, fixed point.
        tokens: Routed tokens, padding excluded.
        calls: Forwards of the router.
        masked: Padding tokens, left out of every other number.
        dropped: Assignments that went to no expert, by a capacity limit or by chance.
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
        identity: Assignments to identity experts, which compute nothing (LongCat's zero experts, a
            class that skips the experts): in no balance figure.
        identity_experts: How many of those there are to choose. Where there are any, what is left
            of ``prob_sum`` to one per token is theirs.
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
    identity: int = 0
    identity_experts: int = 0

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
    def saturated(self) -> bool:
        """Whether some sum has reached the end of its range and stands for at least as much."""
        vectors = (getattr(self, name) for name in VECTORS)
        numbers = (int(getattr(self, name)) for name in COUNTERS)
        return any(abs(number) >= SATURATED for number in numbers) or any(
            bool((array >= SATURATED).any()) for array in vectors
        )

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

    def to_dict(self) -> dict[str, Any]:
        """The record as plain numbers, strings and lists; ``RoutingStats(**record)`` reads it."""
        record: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in VECTORS:
            record[name] = record[name].tolist()
        return record

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
            calls=self.calls,
            identity=self.identity,
            identity_experts=self.identity_experts,
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

COUNTERS = (*SCALARS, "out_of_range", "identity")
"""The scalar fields of `RoutingStats` that add when windows merge."""


def merge_stats(stats: Sequence[RoutingStats]) -> RoutingStats:
    """One router's windows added up: counts and fixed-point sums add, the rest is the last one's.

    A sum that would leave `moetrace.layout.SATURATED` stays there.

    Raises:
        ValueError: The numbers of experts differ.
    """
    last = stats[-1]
    if any(item.num_experts != last.num_experts for item in stats):
        raise ValueError(f"{last.layer} has {[item.num_experts for item in stats]} experts")
    sums: dict[str, Any] = {
        name: _added([getattr(item, name) for item in stats]) for name in VECTORS
    }
    for name in COUNTERS:
        total = sum(int(getattr(item, name)) for item in stats)
        sums[name] = max(-SATURATED, min(SATURATED, total))
    return RoutingStats(
        layer=last.layer,
        num_experts=last.num_experts,
        top_k=last.top_k,
        scoring=last.scoring,
        identity_experts=last.identity_experts,
        **sums,
    )


def shown_columns(stats: Sequence[RoutingStats]) -> dict[str, list[float | None]]:
    """The metrics of `moetrace.metrics.SHOWN`, one entry per layer, as `RoutingStats.metrics` has.

    Cost: some 50 us per number of experts, and 5 us a layer.
    """
    columns: dict[str, list[float | None]] = {name: [None] * len(stats) for name in SHOWN}
    by_experts: dict[int, list[int]] = {}
    for position, item in enumerate(stats):
        by_experts.setdefault(item.num_experts, []).append(position)
    for positions in by_experts.values():
        layers = [stats[position] for position in positions]
        found = shown_metrics(
            np.stack([item.tokens_per_expert for item in layers]),
            tokens=_column(item.tokens for item in layers),
            top_k=_column(item.top_k for item in layers),
            out_of_range=_column(item.out_of_range for item in layers),
            dropped=_column(item.dropped for item in layers),
            scored=_column(item.scored_tokens for item in layers),
            prob_sum=np.stack([item.prob_sum for item in layers]).sum(axis=1)
            / float(1 << FRACTION_BITS["prob_sum"]),
            entropy=_column(item.entropy_sum for item in layers)
            / float(1 << FRACTION_BITS["entropy_sum"]),
            identity=_column(item.identity for item in layers),
            identity_experts=_column(item.identity_experts for item in layers),
        )
        for name, values in found.items():
            for position, value in zip(positions, values, strict=True):
                columns[name][position] = value
    return columns


def _column(values: Iterable[int]) -> Counts:
    return np.array(list(values), dtype=np.int64)


def _added(parts: Sequence[Counts]) -> Counts:
    rows = np.stack(parts)
    limit = SATURATED // len(parts)
    if -limit <= rows.min(initial=0) and rows.max(initial=0) <= limit:
        total: Counts = rows.sum(axis=0)
        return total
    total = np.zeros_like(rows[0])
    for row in rows:
        total = np.clip(total + np.clip(row, -SATURATED, SATURATED), -SATURATED, SATURATED)
    return total
