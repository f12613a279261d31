# pyright: strict
"""How the experts of one layer were used in one window, whether routed to or looked up.

Routers and tables of a million experts are read as the same thing here. Letters: E experts.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetrace.index_stats import IndexStats
from moetrace.metrics import hot_indices, rank_curve, top_indices
from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot

__all__ = ["HOT", "TOP", "Usage", "uniform_ranks", "usages"]

HOT = 5.0
"""Multiple of the mean load above which an expert of a router is hot."""

TOP = 100
"""Experts of a layer that are listed at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Usage:
    """One layer in one window.

    Attributes:
        layer: Its name.
        num_experts: E.
        draws: Assignments to experts.
        tokens: Tokens that chose, where a token chooses no expert twice; 0 where it may.
        coverage: Share of the experts that were used; None where it is not known.
        threshold: Multiple of the mean above which an expert is hot.
        top_experts: The busiest experts.
        top_draws: Their assignments.
        hot: How many are hot; None where it is not known.
        hot_experts: The hottest of them.
        hot_draws: Their assignments.
        ranks: Ranks of the rank curve, from 1.
        rank_draws: Assignments of the expert at each.
    """

    layer: str
    num_experts: int
    draws: int
    tokens: int
    coverage: float | None
    threshold: float
    top_experts: tuple[int, ...]
    top_draws: tuple[int, ...]
    hot: int | None
    hot_experts: tuple[int, ...]
    hot_draws: tuple[int, ...]
    ranks: tuple[int, ...]
    rank_draws: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Assignments of an expert on average, over all E."""
        return self.draws / self.num_experts


def usages(window: Snapshot) -> Iterator[Usage]:
    """Every layer of a window in which something was drawn: routers, then tables of experts."""
    for stats in window:
        if stats.tokens_per_expert.any():
            yield _of_routing(stats)
    for table in window.indices:
        if table.draws:
            yield _of_index(table)


def uniform_ranks(usage: Usage) -> NDArray[np.float64]:
    """Assignments at each rank of the curve that a uniform choice would show.

    The quantile of an expert's count at ``1 - (r - 1/2) / E``: of ``Binomial(T, M / (T E))`` where
    a token chooses no expert twice, and of the Poisson distribution with mean ``M / E`` elsewhere.

    Source: the null model of `moetrace.metrics.noise_floor`.
    """
    mean = usage.mean
    share = min(1.0, mean / usage.tokens) if usage.tokens else 0.0
    spread = math.sqrt(mean * (1 - share))
    low = max(0, math.floor(mean - 12 * spread - 20))
    high = math.ceil(mean + 12 * spread + 20)
    counts = np.arange(low, min(high, usage.tokens or high) + 1)
    logs = np.array([-math.lgamma(count + 1) for count in counts.tolist()])
    if 0 < share < 1:
        odds = math.log(share) - math.log1p(-share)
        rest = [math.lgamma(usage.tokens - count + 1) for count in counts.tolist()]
        logs += counts * odds - np.array(rest)
    elif mean > 0:
        logs += counts * math.log(mean)
    chances = np.exp(logs - logs.max())
    reached = np.cumsum(chances) / chances.sum()
    wanted = 1 - (np.array(usage.ranks) - 0.5) / usage.num_experts
    places = np.minimum(np.searchsorted(reached, wanted), counts.size - 1)
    return counts[places].astype(np.float64)


def _of_routing(stats: RoutingStats) -> Usage:
    counts = stats.tokens_per_expert
    top = top_indices(counts, most=TOP)
    hot = hot_indices(counts, threshold=HOT)
    ranks, rank_draws = rank_curve(counts)
    return Usage(
        layer=stats.layer,
        num_experts=stats.num_experts,
        draws=int(counts.sum()),
        tokens=stats.tokens,
        coverage=float(np.count_nonzero(counts)) / stats.num_experts,
        threshold=HOT,
        top_experts=_listed(top),
        top_draws=_listed(counts[top]),
        hot=hot.size,
        hot_experts=_listed(hot[:TOP]),
        hot_draws=_listed(counts[hot[:TOP]]),
        ranks=_listed(ranks),
        rank_draws=_listed(rank_draws),
    )


def _of_index(stats: IndexStats) -> Usage:
    return Usage(
        layer=stats.layer,
        num_experts=stats.num_experts,
        draws=stats.draws,
        tokens=0,
        coverage=stats.coverage,
        threshold=stats.threshold,
        top_experts=stats.top_experts,
        top_draws=stats.top_draws,
        hot=stats.hot,
        hot_experts=stats.hot_experts,
        hot_draws=stats.hot_draws,
        ranks=stats.ranks,
        rank_draws=stats.rank_draws,
    )


def _listed(values: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(value) for value in values.tolist())
