"""How one window uses a table of experts, up to millions of them: coverage, unevenness, ranks.

Scope and letters: the counts of ONE table over ONE window (and whatever ranks were added into it),
E experts, c_e draws of expert e, M = sum(c) draws, lambda = M / E the mean. NaN where nothing was
drawn. What chance alone shows of each stands in `moetrace.metrics.index_floor`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "counts_of_counts",
    "coverage",
    "hot_indices",
    "hot_overlap",
    "least_hot_count",
    "persistent_experts",
    "rank_curve",
    "rank_curve_of",
    "rank_slope",
    "top_indices",
    "top_share",
    "unevenness",
    "unevenness_of",
]

Counts = NDArray[np.integer[Any]]
Weights = NDArray[Any]


def coverage(counts: Counts) -> float:
    """Share of the experts that were drawn at all, ``#{e: c_e > 0} / E``. Dimensionless.

    Args:
        counts: Draws per expert, shape ``(E,)``.

    Returns:
        A number in ``[0, 1]``. NaN where nothing was drawn.

    Source: PEER, arXiv 2407.04153, table 2 ("expert usage").

    >>> coverage(np.array([3, 1, 0, 0]))
    0.5
    """
    used = int(np.count_nonzero(_checked(counts)))
    return used / counts.size if used else math.nan


def unevenness(weights: Weights) -> float:
    """Divergence of the usage from a uniform one, ``ln E + sum_e p_e ln p_e``, nats.

    With p_e = c_e / sum(c) it is that of the draws; with the sums of the router's scores in place
    of the counts it is the one of the PEER paper.

    Args:
        weights: Draws or summed scores per expert, 0 or more, shape ``(E,)``.

    Returns:
        Nats in ``[0, ln E]``; 0 is even. NaN where all weights are 0.

    Source: PEER, arXiv 2407.04153, section 3.4 (Kullback-Leibler divergence to uniform).

    >>> round(unevenness(np.array([1, 1, 0, 0])), 4)
    0.6931
    """
    found = _checked(weights)
    # A million counts have some hundred different values: logarithms of those alone.
    values, times = counts_of_counts(found) if _few(found) else (found, None)
    return unevenness_of(values.astype(np.float64), times, num_experts=found.size)


def unevenness_of(
    values: NDArray[np.float64], times: NDArray[Any] | None, *, num_experts: int
) -> float:
    """`unevenness` of weights of which each value is there so many times; None for once each."""
    share = values if times is None else values * times
    total = float(share.sum())
    if not total:
        return math.nan
    logs = np.log(values, out=np.zeros_like(values), where=values > 0)
    return max(0.0, math.log(num_experts) + float(share @ logs) / total - math.log(total))


def hot_indices(counts: Counts, *, threshold: float) -> NDArray[np.int64]:
    """Experts with more than ``threshold`` times the mean over all experts, the hottest first.

    The mean is over all E, the unused ones too; a count of exactly ``threshold`` times it is not
    hot. Of equal counts the lower id comes first.

    Args:
        counts: Draws per expert, shape ``(E,)``.
        threshold: Multiplier of the mean.

    Returns:
        Expert ids; fewer than ``E / threshold``.

    Source: ``usage_threshold`` of llm720's ``docs/EXPERT_MONITORING.md``.

    >>> hot_indices(np.array([6, 1, 0, 1, 0, 0, 0, 0]), threshold=5.0).tolist()
    [0]
    >>> hot_indices(np.array([5, 3, 0, 0, 0, 0, 0, 0]), threshold=5.0).tolist()
    []
    """
    found = _checked(counts)
    draws = int(found.sum())
    least = least_hot_count(draws, num_experts=found.size, threshold=threshold)
    hot = np.flatnonzero(found >= least) if draws else np.zeros(0, np.int64)
    return hot[np.argsort(-found[hot], kind="stable")]


def top_indices(counts: Counts, *, most: int) -> NDArray[np.int64]:
    """The ``most`` busiest experts that were drawn at all, the busiest first; ties by their id.

    Args:
        counts: Draws per expert, shape ``(E,)``.
        most: How many at most.

    >>> top_indices(np.array([2, 7, 0, 2, 1]), most=3).tolist()
    [1, 0, 3]
    """
    found = _checked(counts)
    sizes, experts = counts_of_counts(found)
    reached = np.cumsum(experts[::-1])
    enough = min(int(np.searchsorted(reached, most)), sizes.size - 1)
    busy = np.flatnonzero(found >= max(1, int(sizes[::-1][enough])))
    return busy[np.argsort(-found[busy], kind="stable")][:most]


def top_share(counts: Counts, *, most: int) -> float:
    """Share of all draws that the ``most`` busiest experts got. Dimensionless.

    Args:
        counts: Draws per expert, shape ``(E,)``.
        most: How many experts.

    Returns:
        A number in ``(0, 1]``. NaN where nothing was drawn.

    Source: the definition.

    >>> top_share(np.array([3, 1, 0, 0]), most=1)
    0.75
    """
    total = float(np.asarray(counts).sum())
    return float(counts[top_indices(counts, most=most)].sum()) / total if total else math.nan


def rank_curve(counts: Counts, *, points: int = 200) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The counts in falling order, at ranks that are spread evenly in their logarithm.

    Args:
        counts: Draws per expert, shape ``(E,)``.
        points: Ranks at most.

    Returns:
        Ranks from 1 to E, and the count of the expert at each.

    Source: the definition (a rank-size plot).

    >>> ranks, found = rank_curve(np.array([2, 7, 0, 1]), points=9)
    >>> ranks.tolist(), found.tolist()
    ([1, 2, 3, 4], [7, 2, 1, 0])
    """
    return rank_curve_of(*counts_of_counts(_checked(counts)), points=points)


def rank_slope(ranks: NDArray[Any], counts: NDArray[Any]) -> float:
    """Slope of the rank curve in log-log, by least squares over ranks 10 to E / 10.

    0 is even; a Zipf distribution has -1. Dimensionless.

    Args:
        ranks: Ranks of `rank_curve`; the last one is E.
        counts: The counts there.

    Returns:
        A number of 0 or less. NaN where fewer than three ranks in that range were drawn.

    Source: the definition; the range leaves out both ends, which are noise.

    >>> ranks = np.unique(np.rint(np.geomspace(1, 10000, 60)).astype(np.int64))
    >>> round(rank_slope(ranks, 1_000_000 / ranks), 4)
    -1.0
    """
    there = (ranks >= 10) & (ranks <= ranks[-1] / 10) & (counts > 0)
    if np.count_nonzero(there) < 3:
        return math.nan
    x, y = np.log(ranks[there].astype(np.float64)), np.log(counts[there].astype(np.float64))
    spread = x - x.mean()
    return float(spread @ y / (spread @ spread))


def hot_overlap(before: NDArray[Any], now: NDArray[Any]) -> float:
    """Jaccard index of the hot experts of two windows, ``|A and B| / |A or B|``. Dimensionless.

    Args:
        before: Distinct expert ids.
        now: Distinct expert ids.

    Returns:
        A number in ``[0, 1]``; 1 where the same experts are hot. NaN where none is in either.

    Source: Jaccard's index; chance gives about ``q / (2 - q)`` for a share q of hot experts.

    >>> hot_overlap(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    both = np.intersect1d(before, now, assume_unique=True).size
    either = before.size + now.size - both
    return both / either if either else math.nan


def persistent_experts(
    hot: Sequence[NDArray[Any]], *, share: float = 0.8, windows: int = 5
) -> NDArray[np.int64]:
    """Experts that were hot in at least ``share`` of the last ``windows`` windows, ascending.

    Args:
        hot: Ids of the hot experts of each window, the newest last.
        share: From which on an expert counts as persistent.
        windows: How many windows; none is persistent before there are that many.

    Source: "the same experts remain hot throughout training" of llm720's
    ``docs/EXPERT_MONITORING.md``, made a number.

    >>> persistent_experts([np.array([7, 8]), np.array([7]), np.array([7, 9])], windows=3).tolist()
    [7]
    """
    if len(hot) < windows:
        return np.zeros(0, np.int64)
    ids, times = np.unique(np.concatenate(hot[len(hot) - windows :]), return_counts=True)
    return ids[times >= share * windows - 1e-9].astype(np.int64)


def rank_curve_of(
    sizes: NDArray[np.int64], experts: NDArray[np.int64], *, points: int = 200
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`rank_curve` of counts of which `counts_of_counts` is known."""
    last = int(experts.sum())
    ranks = np.unique(np.rint(np.geomspace(1, last, points)).astype(np.int64))
    # How many experts have at least this count: sorted without sorting a million of them.
    reached = np.cumsum(experts[::-1])
    return ranks, sizes[::-1][np.searchsorted(reached, ranks)]


def least_hot_count(draws: int, *, num_experts: int, threshold: float) -> int:
    """The least count above ``threshold`` times the mean; that of `hot_indices`.

    >>> least_hot_count(8, num_experts=8, threshold=5.0)
    6
    """
    limit = threshold * float(draws)
    least = math.floor(limit / num_experts)
    return least + (least * num_experts <= limit)


def counts_of_counts(counts: Counts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different counts in rising order, and how many experts have each."""
    if _few(counts):
        table = np.bincount(counts)
        sizes = np.flatnonzero(table)
        return sizes, table[sizes]
    sizes, experts = np.unique(counts, return_counts=True)
    return sizes.astype(np.int64), experts.astype(np.int64)


def _few(counts: NDArray[Any]) -> bool:
    """Whether the counts are small enough that a table of their values is the shorter way."""
    whole = np.issubdtype(counts.dtype, np.integer)
    return bool(whole and counts.size > 0 and 0 <= counts.min() <= counts.max() < 8 * counts.size)


def _checked(counts: NDArray[Any]) -> NDArray[Any]:
    found = np.asarray(counts)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(f"counts: found shape {found.shape}, expected (E,)")
    return found
