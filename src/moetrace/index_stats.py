# pyright: strict
"""What one table of experts was asked for in one window: its draws, and what they reduce to.

A table may have a million rows, so that a record holds their counts only on its way to the disk.
What stays is of a bounded size: sums, marginals of the product keys, a rank curve, and the busiest
experts. Draws, tokens, sub-keys and sums of scores add over windows and ranks; what does not add is
formed anew where the counts of both are there, and is None where they are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moetrace.index_layout import INDEX_SCALARS, SCORE_BITS, SCORE_SQ_BITS
from moetrace.layout import SATURATED
from moetrace.metrics import (
    INDEX_METRICS,
    counts_of_counts,
    index_metrics,
    least_hot_count,
    least_sure_count,
    rank_curve_of,
    rank_slope,
    sub_key_counts,
    unevenness,
    unevenness_of,
)

__all__ = [
    "DENSE",
    "INDEX_METRICS",
    "MOST_LISTED",
    "IndexStats",
    "index_stats_of",
    "with_shared",
]

MOST_LISTED = 100
"""Experts that a list of a record holds at most: the hot ones, the busiest, the persistent."""

SHARED_EACH, MOST_SHARED = 20, 200
"""Busiest experts of each table whose counts are noted in every table, and how many in all."""

DENSE = ("tokens_per_expert", "score_sum")
"""Fields that hold a number per expert; None in a record that holds reductions alone."""


@dataclass(frozen=True, slots=True, eq=False)
class IndexStats:
    """One table of experts in one window. A field is None where it cannot be known.

    Letters: E experts, M draws, c_e those of expert e.

    Attributes:
        layer: Name of the layer.
        num_experts: E.
        columns: Sub-keys of the second half of a product key, whose grid has ``E / columns`` rows;
            0 for a table without product keys.
        threshold: Multiplier of the mean from which an expert is hot.
        tokens: Tokens that looked something up, padding excluded.
        calls: Look-ups.
        masked: Tokens left out as padding.
        out_of_range: Draws of an expert that the table does not have.
        nonfinite: Scores that were NaN or infinite, and count as 0.
        draws: M, of experts that the table has.
        highest: Largest id drawn, -1 where nothing was.
        used: Experts drawn at all.
        busiest: Largest count.
        square_sum: Sum of the squares of the counts.
        unevenness: Of the draws, nats.
        score_total: Sum of all scores in fixed point; None where no scores are seen.
        score_sq_total: Sum of their squares in fixed point.
        unevenness_score: Of the sums of scores per expert, nats.
        scored_calls: Look-ups whose scores are in those three; fewer than ``calls`` where a step of
            the window was dropped, behind which the sums of scores begin anew, or where scores
            came late.
        row_draws, column_draws: Draws per sub-key of the first and of the second half.
        hot: Experts above ``threshold`` times the mean.
        sure_hot: Those of them that chance does not explain in the whole table.
        hot_experts, hot_draws: The hottest of them, at most 100, and their counts.
        top_experts, top_draws: The busiest experts, at most 100, and their counts.
        ranks, rank_draws: The rank curve: some 200 ranks, and the count at each.
        history: Windows over which persistence was asked for, at most 5.
        persistent: Experts that were hot in at least 80 % of five windows in a row.
        persistent_experts: The first 100 of them.
        overlap: Share of the hot experts of this window and the one before that are hot in both.
        shared_experts, shared_draws: The busiest experts of all tables of the model together, at
            most 200, and their counts in this one.
        due: Whether the counts per expert are worth a place on the disk.
        tokens_per_expert: c_e, int64 ``(E,)``, or None in a record that holds reductions alone.
        score_sum: Sums of scores per expert in fixed point, or None.

    Raises:
        ValueError: Its parts are not of one table.
    """

    layer: str
    num_experts: int
    columns: int
    threshold: float
    tokens: int
    calls: int
    masked: int
    out_of_range: int
    nonfinite: int
    draws: int
    highest: int
    used: int | None = None
    busiest: int | None = None
    square_sum: float | None = None
    unevenness: float | None = None
    score_total: int | None = None
    score_sq_total: int | None = None
    unevenness_score: float | None = None
    scored_calls: int | None = None
    row_draws: tuple[int, ...] = ()
    column_draws: tuple[int, ...] = ()
    hot: int | None = None
    sure_hot: int | None = None
    hot_experts: tuple[int, ...] = ()
    hot_draws: tuple[int, ...] = ()
    top_experts: tuple[int, ...] = ()
    top_draws: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    rank_draws: tuple[int, ...] = ()
    history: int = 0
    persistent: int | None = None
    persistent_experts: tuple[int, ...] = ()
    overlap: float | None = None
    shared_experts: tuple[int, ...] = ()
    shared_draws: tuple[int, ...] = ()
    due: bool = False
    tokens_per_expert: NDArray[np.int64] | None = field(
        default=None, repr=False, metadata={"stored": False}
    )
    score_sum: NDArray[np.int64] | None = field(
        default=None, repr=False, metadata={"stored": False}
    )

    def __post_init__(self) -> None:
        rows = self.num_experts // self.columns if self.columns > 0 else 0
        pairs = (
            (self.hot_experts, self.hot_draws),
            (self.top_experts, self.top_draws),
            (self.ranks, self.rank_draws),
            (self.shared_experts, self.shared_draws),
        )
        if (
            self.num_experts < 1
            or self.columns < 0
            or rows * self.columns not in (0, self.num_experts)
            or (len(self.row_draws), len(self.column_draws)) != (rows, self.columns)
            or any(len(names) != len(counts) for names, counts in pairs)
            or min(self.draws, self.tokens, self.calls, *self.row_draws, *self.column_draws) < 0
            or not -1 <= self.highest < self.num_experts
            or not 0 < self.threshold < math.inf
        ):
            raise ValueError(f"found a record of {self.layer!r} whose parts do not fit each other")

    @property
    def key(self) -> str:
        """What tells one record of a window from another."""
        return self.layer

    @property
    def nbytes(self) -> int:
        """Bytes of the counts and sums per expert that it holds."""
        found = (self.tokens_per_expert, self.score_sum)
        return sum(vector.nbytes for vector in found if vector is not None)

    @property
    def coverage(self) -> float | None:
        """Share of the experts that were drawn at all."""
        return None if self.used is None or not self.draws else self.used / self.num_experts

    @property
    def rows(self) -> int:
        """Sub-keys of the first half; 0 for a table without product keys."""
        return self.num_experts // self.columns if self.columns else 0

    def reduced(self) -> Self:
        """The record without a number per expert."""
        return replace(self, tokens_per_expert=None, score_sum=None) if self.nbytes else self

    def metrics(self) -> dict[str, float | None]:
        """Every metric of `INDEX_METRICS`; None where it is undefined or cannot be known.

        >>> stats = index_stats_of("mlp", np.array([3, 1, 0, 0]), columns=2, threshold=2.0)
        >>> found = stats.metrics()
        >>> found["coverage"], found["dead_rows"], found["hot_indices"], found["max_over_avg"]
        (0.5, 1.0, 1.0, 3.0)
        """
        if not self.draws:
            return index_metrics({}, draws=0, num_experts=self.num_experts)
        mean = self.draws / self.num_experts
        counted: dict[str, float | None] = {
            "experts_used": self.used,
            "coverage": self.coverage,
            "max_over_avg": None if self.busiest is None else self.busiest / mean,
            "usage_cv": None
            if self.square_sum is None
            else math.sqrt(max(0.0, self.square_sum / self.num_experts / mean**2 - 1.0)),
            "unevenness": self.unevenness,
            "unevenness_score": self.unevenness_score,
            "hot_indices": self.hot,
            "sure_hot_indices": self.sure_hot,
            "persistent_hot_indices": self.persistent,
            "hot_overlap": self.overlap,
            "rank_slope": rank_slope(np.array(self.ranks), np.array(self.rank_draws))
            if self.ranks
            else None,
        }
        scores = None
        if self.score_total is not None and self.score_sq_total is not None:
            scores = (
                self.score_total / (1 << SCORE_BITS),
                self.score_sq_total / (1 << SCORE_SQ_BITS),
            )
        return index_metrics(
            counted,
            draws=self.draws,
            num_experts=self.num_experts,
            threshold=self.threshold,
            scores=scores,
            row_draws=np.array(self.row_draws),
            column_draws=np.array(self.column_draws),
        )

    def followed_by(self, later: "IndexStats") -> "IndexStats":
        """This window and the next one of the same process as one."""
        return _added(self, later)

    def beside(self, other: "IndexStats") -> "IndexStats":
        """The same steps of two ranks as one: each has looked up for tokens of its own."""
        return _added(self, other)


def index_stats_of(
    layer: str,
    counts: NDArray[np.int64],
    *,
    columns: int = 0,
    threshold: float = 5.0,
    score_sum: NDArray[np.int64] | None = None,
    scalars: Mapping[str, int] | None = None,
    out_of_range: int = 0,
    due: bool = False,
) -> IndexStats:
    """The record of one table, with its counts and all that they reduce to.

    Args:
        layer: Name of the layer.
        counts: Draws per expert, shape ``(E,)``.
        columns: Sub-keys of the second half, or 0.
        threshold: Multiplier of the mean from which an expert is hot.
        score_sum: Sums of scores per expert in fixed point.
        scalars: Values of `moetrace.index_layout.INDEX_SCALARS` by name; 0 where left out.
        out_of_range: Draws of experts that are not there.
        due: Whether the counts are worth a place on the disk.

    Cost: some 45 ms for a million experts with their scores (``benchmarks/index_probe.py``).
    """
    noted = dict.fromkeys(INDEX_SCALARS, 0) | dict(scalars or {})
    # A million counts have some hundred different values: nearly all follows from how often each.
    sizes, experts = counts_of_counts(counts)
    values = sizes.astype(np.float64)
    draws = int(sizes @ experts) if float(values @ experts) < SATURATED else SATURATED
    ranks, rank_draws = rank_curve_of(sizes, experts)
    rows, cols = sub_key_counts(counts, columns=columns) if columns else (counts[:0], counts[:0])
    least = least_hot_count(draws, num_experts=counts.size, threshold=threshold)
    sure = least_sure_count(draws, num_experts=counts.size, threshold=threshold)
    busy = _busiest(counts, sizes, experts)
    top, hot = busy[:MOST_LISTED], busy[counts[busy] >= max(1, least)][:MOST_LISTED]
    return IndexStats(
        layer=layer,
        num_experts=counts.size,
        columns=columns,
        threshold=float(threshold),
        tokens=noted["tokens"],
        calls=noted["calls"],
        masked=noted["masked"],
        out_of_range=out_of_range,
        nonfinite=noted["nonfinite"],
        draws=draws,
        highest=int(counts.size - 1 - np.argmax(counts[::-1] > 0)) if draws else -1,
        used=int(experts[sizes > 0].sum()),
        busiest=int(sizes[-1]),
        square_sum=float((values * experts) @ values),
        unevenness=_number(unevenness_of(values, experts, num_experts=counts.size)),
        score_total=None if score_sum is None else _total(score_sum),
        score_sq_total=None if score_sum is None else noted["score_sq_sum"],
        unevenness_score=None if score_sum is None else _number(unevenness(score_sum)),
        scored_calls=None if score_sum is None else noted["scored_calls"],
        row_draws=_listed(rows),
        column_draws=_listed(cols),
        hot=int(experts[sizes >= max(1, least)].sum()),
        sure_hot=int(experts[sizes >= max(1, sure)].sum()),
        hot_experts=_listed(hot),
        hot_draws=_listed(counts[hot]),
        top_experts=_listed(top),
        top_draws=_listed(counts[top]),
        ranks=_listed(ranks),
        rank_draws=_listed(rank_draws),
        due=due,
        tokens_per_expert=counts,
        score_sum=score_sum,
    )


def _busiest(
    counts: NDArray[np.int64], sizes: NDArray[np.int64], experts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The 100 busiest experts that were drawn at all, the busiest first; ties by their id."""
    reached = np.cumsum(experts[::-1])
    enough = min(int(np.searchsorted(reached, MOST_LISTED)), sizes.size - 1)
    busy = np.flatnonzero(counts >= max(1, int(sizes[::-1][enough])))
    return busy[np.argsort(-counts[busy], kind="stable")][:MOST_LISTED]


def with_shared(records: Sequence[IndexStats]) -> list[IndexStats]:
    """The records of one window, each with its counts of the busiest experts of all of them.

    Args:
        records: Records that hold their counts per expert.
    """
    each = max(1, min(SHARED_EACH, MOST_SHARED // max(1, len(records))))
    busiest = sorted({expert for record in records for expert in record.top_experts[:each]})
    found: list[IndexStats] = []
    for record in records:
        counts = record.tokens_per_expert
        if counts is None:
            found.append(record)
            continue
        here = [expert for expert in busiest if expert < counts.size][:MOST_SHARED]
        found.append(
            replace(record, shared_experts=tuple(here), shared_draws=_listed(counts[here]))
        )
    return found


def _added(one: IndexStats, two: IndexStats) -> IndexStats:
    if (one.num_experts, one.columns) != (two.num_experts, two.columns):
        return two  # another table in its place: the newer one stands
    whole = _of_counts(one, two)
    if whole is None:
        nothing: dict[str, Any] = {
            item.name: item.default for item in fields(two) if item.name in _NOT_ADDED
        }
        whole = replace(
            two,
            **nothing,
            row_draws=_sum(one.row_draws, two.row_draws),
            column_draws=_sum(one.column_draws, two.column_draws),
        )
    return replace(
        whole,
        tokens=one.tokens + two.tokens,
        calls=one.calls + two.calls,
        masked=one.masked + two.masked,
        out_of_range=one.out_of_range + two.out_of_range,
        nonfinite=one.nonfinite + two.nonfinite,
        draws=one.draws + two.draws,
        highest=max(one.highest, two.highest),
        score_total=_both(one.score_total, two.score_total),
        score_sq_total=_both(one.score_sq_total, two.score_sq_total),
        scored_calls=_both(one.scored_calls, two.scored_calls),
        due=one.due or two.due,
    )


_NOT_ADDED = frozenset(
    """
    used busiest square_sum unevenness unevenness_score hot sure_hot hot_experts hot_draws
    top_experts top_draws ranks rank_draws history persistent persistent_experts overlap
    shared_experts shared_draws tokens_per_expert score_sum
    """.split()  # noqa: SIM905
)
"""What two records without counts per expert do not tell of both together."""


def _of_counts(one: IndexStats, two: IndexStats) -> IndexStats | None:
    if one.tokens_per_expert is None or two.tokens_per_expert is None:
        return None
    scores = None
    if one.score_sum is not None and two.score_sum is not None:
        scores = _stopped(one.score_sum, two.score_sum)
    return index_stats_of(
        two.layer,
        _stopped(one.tokens_per_expert, two.tokens_per_expert),
        columns=two.columns,
        threshold=two.threshold,
        score_sum=scores,
    )


def _stopped(one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of two columns from 0; what would leave `moetrace.layout.SATURATED` stays there."""
    both: NDArray[np.int64] = np.minimum(one, SATURATED) + np.minimum(two, SATURATED)
    return both.clip(max=SATURATED)


def _total(column: NDArray[np.int64]) -> int:
    return int(column.sum()) if float(column.sum(dtype=np.float64)) < SATURATED else SATURATED


def _sum(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, two, strict=True))


def _both(one: int | None, two: int | None) -> int | None:
    return None if one is None or two is None else one + two


def _listed(found: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(item) for item in found.tolist())


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
