# pyright: strict
"""How much two runs differ by chance: what a difference has to be held against.

Letters: T tokens, E experts, K chosen per token, c assignments of one expert.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics import load_change_floor
from moetrace.routing_stats import RoutingStats

__all__ = ["FEWEST", "expert_noise", "load_noise", "times_noise", "wobble"]

FEWEST = 5
"""Differences from which their wobble is told."""

_MEDIAN_OF_STEPS = 0.6744897501960817 * math.sqrt(2)
"""Median size of the difference of two standard normals."""


def load_noise(one: RoutingStats, two: RoutingStats) -> float | None:
    """Expected `moetrace.metrics.load_change` of two runs that route by the same shares.

    ``load_change_floor`` of a uniform router, for ``T = 2 T1 T2 / (T1 + T2)`` tokens each: of two
    counts the variances add, and ``1 / T1 + 1 / T2`` is ``2 / T``. Shares that are uneven, and the
    same in both runs, differ less by chance; tokens that come in clumps differ more.

    Args:
        one: A layer's window of one run.
        two: The same of the other.

    Returns:
        A share of the load. None where K varies, differs between the two, or nothing was routed.

    Source: derived here from `moetrace.metrics.load_change_floor`.

    >>> zeros = np.zeros(64, np.int64)
    >>> stats = RoutingStats("mlp", 64, 6, "none", zeros, zeros, zeros, tokens=4096)
    >>> round(load_noise(stats, stats) or 0, 4)
    0.0274
    """
    if one.top_k != two.top_k or not 1 <= one.top_k <= one.num_experts:
        return None
    if one.tokens <= 0 or two.tokens <= 0:
        return None
    tokens = round(2 * one.tokens * two.tokens / (one.tokens + two.tokens))
    return load_change_floor(tokens, num_experts=one.num_experts, top_k=one.top_k)


def expert_noise(one: RoutingStats, two: RoutingStats) -> NDArray[np.float64]:
    """Standard deviation of the difference of each expert's share of the tokens, shape ``(E,)``.

    ``sqrt(q (1 - q) (1 / T1 + 1 / T2))`` with ``q = (c1 + c2) / (T1 + T2)``, in shares of the
    tokens that chose the expert; times ``E / K`` it is in multiples of the fair share.

    Source: the pooled test of two proportions.
    """
    counts: NDArray[Any] = one.tokens_per_expert + two.tokens_per_expert
    tokens = max(1, one.tokens + two.tokens)
    q = np.clip(counts / tokens, 0.0, 1.0)
    return np.sqrt(q * (1 - q) * (1 / max(1, one.tokens) + 1 / max(1, two.tokens)))


def wobble(differences: Sequence[float]) -> float | None:
    """How much a difference of two runs moves from one span to the next, as a standard deviation.

    ``median(abs(d[i + 1] - d[i])) / 0.954``, which is the standard deviation where they are
    independent normals; a slow drift does not count as noise, and neither does a single jump.

    Args:
        differences: The difference in each span, NaN where there is none.

    Returns:
        In the unit of the differences. None for fewer than five of them.

    Source: von Neumann's successive differences (Annals of Mathematical Statistics 12, 1941, 367),
    with the median in place of the mean square.

    >>> round(wobble([0.0, 1.0, 0.0, 1.0, 0.0]) or 0, 4), wobble([0.0, 1.0])
    (1.0484, None)
    """
    known = np.asarray(differences, np.float64)
    known = known[np.isfinite(known)]
    if known.size < FEWEST:
        return None
    return float(np.median(np.abs(np.diff(known)))) / _MEDIAN_OF_STEPS


def times_noise(difference: float | None, noise: float | None) -> float | None:
    """A difference in multiples of its noise; infinite where there is no noise at all.

    >>> times_noise(0.5, 0.25), times_noise(0.5, 0.0), times_noise(0.0, 0.0), times_noise(1.0, None)
    (2.0, inf, 0.0, None)
    """
    if difference is None or noise is None or not math.isfinite(difference):
        return None
    if noise > 0:
        return abs(difference) / noise
    return math.inf if difference else 0.0
