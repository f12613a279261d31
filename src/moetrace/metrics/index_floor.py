"""What a uniform draw from a table of experts shows by chance alone.

The null model: M draws, each of any of E experts with the same chance, so that a count is Poisson
distributed with mean lambda = M / E. (K distinct draws per token are a little steadier; with E far
above K that does not show.) A floor is the expected value of its metric; what is left of the metric
when it is subtracted is the router's own doing. Every floor is NaN where nothing was drawn.

Letters: M draws, E experts, lambda = M / E.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "coverage_floor",
    "dead_sub_keys_floor",
    "hot_indices_floor",
    "hot_overlap_floor",
    "least_sure_count",
    "mutual_information_floor",
    "poisson_tail",
    "unevenness_floor",
    "unevenness_score_floor",
    "uniform_rank_curve",
]

_WIDTH = 12.0  # standard deviations beyond which nothing is left that a double could see
_LARGE = 2e5  # lambda from which the expansion in 1 / lambda is exact to a double


def coverage_floor(draws: int, *, num_experts: int) -> float:
    """Expected `coverage` of a uniform draw, ``1 - exp(-lambda)``. Dimensionless.

    Args:
        draws: M.
        num_experts: E.

    Returns:
        A number in ``(0, 1]``. NaN without draws.

    Source: derived here from the null model.

    >>> round(coverage_floor(1000, num_experts=1000), 4)
    0.6321
    """
    return -math.expm1(-_mean(draws, num_experts))


def unevenness_floor(draws: int, *, num_experts: int) -> float:
    """Expected `unevenness` of a uniform draw, ``E[c ln c] / lambda - ln lambda``, nats.

    About ``1 / (2 lambda)`` from a mean of 4 on.

    Args:
        draws: M.
        num_experts: E.

    Returns:
        Nats, 0 or more. NaN without draws.

    Source: derived here from the null model.

    >>> round(unevenness_floor(1000, num_experts=1000), 4)
    0.5734
    """
    mean = _mean(draws, num_experts)
    return math.nan if math.isnan(mean) else _divergence(mean)


def unevenness_score_floor(score_sum: float, score_sq_sum: float, *, num_experts: int) -> float:
    """About the `unevenness` of the scores where experts are drawn evenly, nats.

    That of ``(sum s)^2 / sum s^2`` draws, which is how many equal scores would weigh as unevenly as
    these. Exact where all scores are equal; where they are as unequal as exponential ones, within
    12 % at 6 draws per expert and within 2 % at 60.

    Args:
        score_sum: Sum of the scores of all draws.
        score_sq_sum: Sum of their squares.
        num_experts: E.

    Returns:
        Nats, 0 or more. NaN where all scores are 0.

    Source: Kish's effective sample size; the rest is derived here.

    >>> round(unevenness_score_floor(500.0, 250.0, num_experts=1000), 4)
    0.5734
    """
    if score_sum <= 0 or score_sq_sum <= 0:
        return math.nan
    return _divergence(score_sum**2 / score_sq_sum / num_experts)


def mutual_information_floor(draws: int, *, rows: int, columns: int) -> float:
    """Expected `mutual_information` of a uniform draw, nats.

    The floor of the whole less those of its rows and of its columns; about
    ``(rows - 1) (columns - 1) / (2 M)`` from a mean of 4 draws per expert on.

    Args:
        draws: M.
        rows: Sub-keys of the first half.
        columns: Sub-keys of the second half.

    Returns:
        Nats, 0 or more. NaN without draws.

    Source: derived here from the null model; Miller and Madow's correction in the limit.

    >>> round(mutual_information_floor(100_000, rows=100, columns=100), 4)
    0.0499
    """
    return (
        unevenness_floor(draws, num_experts=rows * columns)
        - unevenness_floor(draws, num_experts=rows)
        - unevenness_floor(draws, num_experts=columns)
    )


def dead_sub_keys_floor(draws: int, *, sub_keys: int) -> float:
    """Expected `dead_sub_keys` of a uniform draw, ``n (1 - 1 / n)^M``: exact. Sub-keys.

    Args:
        draws: M.
        sub_keys: Rows, or columns.

    Returns:
        A number of 0 or more. NaN without draws.

    Source: derived here from the null model.

    >>> round(dead_sub_keys_floor(64, sub_keys=32), 4)
    4.1947
    """
    if math.isnan(_mean(draws, sub_keys)):
        return math.nan
    return sub_keys * (1 - 1 / sub_keys) ** draws


def hot_indices_floor(draws: int, *, num_experts: int, threshold: float) -> float:
    """Expected number of `hot_indices` of a uniform draw, ``E P(c > threshold lambda)``. Experts.

    Args:
        draws: M.
        num_experts: E.
        threshold: Multiplier of the mean.

    Returns:
        A number of 0 or more. NaN without draws.

    Source: derived here from the null model.

    >>> round(hot_indices_floor(1 << 20, num_experts=1 << 20, threshold=5.0))
    623
    """
    mean = _mean(draws, num_experts)
    if math.isnan(mean):
        return math.nan
    return num_experts * poisson_tail(math.floor(threshold * mean) + 1, mean=mean)


def hot_overlap_floor(hot: int, *, num_experts: int) -> float:
    """About the `hot_overlap` of two windows with independent hot experts, ``q / (2 - q)``.

    Args:
        hot: Hot experts of a window.
        num_experts: E; q is ``hot / E``.

    Returns:
        A number in ``[0, 1]``. Dimensionless.

    Source: derived here.

    >>> round(hot_overlap_floor(100, num_experts=200), 4)
    0.3333
    """
    share = hot / num_experts
    return share / (2 - share)


def uniform_rank_curve(ranks: NDArray[Any], *, draws: int, num_experts: int) -> NDArray[np.int64]:
    """The counts that a uniform draw shows at these ranks: the curve to hold `rank_curve` against.

    The count at rank r is the largest c with ``E P(Poisson(lambda) >= c) >= r - 1/2``.

    Args:
        ranks: Ranks from 1 to E, ascending.
        draws: M.
        num_experts: E.

    Returns:
        Counts, falling, shape of ``ranks``.

    Source: derived here from the null model.

    >>> uniform_rank_curve(np.array([1, 500, 1000]), draws=1000, num_experts=1000).tolist()
    [6, 1, 0]
    """
    mean = _mean(draws, num_experts)
    if math.isnan(mean):
        return np.zeros(len(ranks), np.int64)
    first, chance = _chances(mean)
    least = np.append(np.cumsum(chance[::-1])[::-1], 0.0)  # P(c >= first + i)
    enough = num_experts * least[:, None] >= (np.asarray(ranks) - 0.5)[None, :]
    counts: NDArray[np.int64] = np.maximum(0, first + enough.sum(0) - 1).astype(np.int64)
    return counts


def poisson_tail(count: int, *, mean: float) -> float:
    """Chance of at least ``count`` where ``mean`` are expected, ``P(Poisson(mean) >= count)``.

    Args:
        count: A whole number.
        mean: More than 0.

    Returns:
        A number in ``[0, 1]``; exact to a relative 1e-9 down to 1e-300.

    Source: the series of the Poisson distribution.

    >>> round(poisson_tail(1, mean=1.0), 4), round(poisson_tail(20, mean=4.0) * 1e9, 2)
    (0.6321, 10.2)
    """
    if count <= 0:
        return 1.0
    if count <= mean:
        first, chance = _chances(mean)
        return float(np.minimum(1.0, chance[max(0, count - first) :].sum()))
    log_first = count * math.log(mean) - mean - math.lgamma(count + 1)
    total, term, at = 1.0, 1.0, count
    while term > 1e-12 * total:
        at += 1
        term *= mean / at
        total += term
    return math.exp(log_first) * total


def least_sure_count(draws: int, *, num_experts: int, threshold: float, rare: float = 1e-3) -> int:
    """The least hot count that chance does not explain in any of the experts.

    More than ``threshold`` times the mean, and with ``P(Poisson(lambda) >= c) < rare / E``.

    Args:
        draws: M.
        num_experts: E.
        threshold: Multiplier of the mean.
        rare: Chance of one such expert in a whole table.

    Source: the Bonferroni bound over all experts.

    >>> least_sure_count(1 << 20, num_experts=1 << 20, threshold=5.0)
    12
    """
    mean = _mean(draws, num_experts)
    if math.isnan(mean):
        return 1
    least = math.floor(threshold * mean) + 1
    step = 1
    while poisson_tail(least + step, mean=mean) * num_experts >= rare:
        step *= 2
    low, high = least - 1, least + step  # the first may be rare enough itself
    while high - low > 1:
        middle = (low + high) // 2
        if poisson_tail(middle, mean=mean) * num_experts < rare:
            high = middle
        else:
            low = middle
    return max(least, high)


def _mean(draws: int, cells: int) -> float:
    if draws < 0 or cells < 1:
        raise ValueError(f"found {draws} draws from {cells}; both are counts")
    return draws / cells if draws else math.nan


def _chances(mean: float) -> tuple[int, NDArray[np.float64]]:
    """The first count that can be seen, and the chances of it and those that follow."""
    reach = _WIDTH * math.sqrt(mean) + 40
    first, last = max(0, math.floor(mean - reach)), math.ceil(mean + reach)
    steps = np.log(mean) - np.log(np.arange(first + 1, last + 1, dtype=np.float64))
    start = first * math.log(mean) - mean - math.lgamma(first + 1)
    return first, np.exp(start + np.concatenate([[0.0], np.cumsum(steps)]))


@lru_cache(maxsize=4096)
def _divergence(mean: float) -> float:
    if mean > _LARGE:
        return 1 / (2 * mean) + 1 / (12 * mean**2)
    first, chance = _chances(mean)
    counts = np.arange(first, first + chance.size, dtype=np.float64)
    busy = counts > 0
    # ln(c / lambda) and not ln c - ln lambda: their difference is small where lambda is large.
    logs = np.log1p((counts[busy] - mean) / mean)
    return max(0.0, float((chance[busy] * counts[busy]) @ logs) / mean)
