"""What a perfectly uniform router would show: the least imbalance that chance alone leaves.

The null model: each of T tokens picks K distinct experts out of E, uniformly. An expert's count is
then Binomial(T, p) with p = K / E, and two experts' counts correlate with -1 / (E - 1), since the
counts add up to T * K. For K = 1 that is the multinomial; for larger K the counts are steadier
than a multinomial of T * K draws by the factor sqrt(1 - p).

A floor is the expected value of its metric under that model: about half of all windows of a
uniform router lie above it. What is left of a metric when its floor is subtracted (its excess) is
the router's own doing. `max_vio_floor` stands in `moetrace.metrics.expected_maximum`.

Letters: T tokens, E experts, K chosen per token. Every floor is NaN where nothing was routed.
"""

import math
from functools import lru_cache

import numpy as np

__all__ = ["avg_vio_floor", "check_null", "dead_experts_floor", "load_cv_floor", "load_gini_floor"]


def check_null(tokens: int, num_experts: int, top_k: int) -> None:
    """Refuse what is no top-K routing.

    Raises:
        ValueError: Tokens below 0, or top_k outside ``[1, num_experts]``.
    """
    if tokens < 0:
        raise ValueError(f"found {tokens} tokens; counts start at 0")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"found top_k={top_k} of {num_experts} experts; it is 1 to num_experts")


def load_cv_floor(tokens: int, *, num_experts: int, top_k: int) -> float:
    """Expected `load_cv` of a uniform router.

    ``sqrt((1 - p) / (T p))`` is exact for the root mean square. The mean lies a little below it;
    the variance of the counts has relative variance ``2 (1 - 1/T) / (E - 1)``, exactly, which is
    that of a chi-square with ``v = (E - 1) T / (T - 1)`` degrees of freedom, so the mean is the
    root mean square times ``sqrt(2 / v) gamma((v + 1) / 2) / gamma(v / 2)``. Within 1 % of
    enumeration and simulation for 8 experts or more, and for any number from 64 tokens on; the
    worst case of all, 2 experts and 2 tokens, is 25.4 % too high. Dimensionless.

    Args:
        tokens: T.
        num_experts: E.
        top_k: K.

    Returns:
        A number of 0 or more. NaN without tokens.

    Raises:
        ValueError: Tokens below 0, or top_k outside ``[1, num_experts]``.

    Source: derived here from the null model.

    >>> round(load_cv_floor(16384, num_experts=128, top_k=8), 4)
    0.0302
    """
    check_null(tokens, num_experts, top_k)
    if tokens == 0:
        return math.nan
    if top_k == num_experts:
        return 0.0
    root_mean_square = math.sqrt((num_experts - top_k) / (tokens * top_k))
    if tokens == 1:
        return root_mean_square
    half = (num_experts - 1) * tokens / (tokens - 1) / 2
    if half > 1e6:
        return root_mean_square
    mean_over_rms = math.exp(math.lgamma(half + 0.5) - math.lgamma(half)) / math.sqrt(half)
    return root_mean_square * mean_over_rms


def avg_vio_floor(tokens: int, *, num_experts: int, top_k: int) -> float:
    """Expected `avg_vio` of a uniform router: exact.

    The mean absolute deviation of Binomial(T, p) over its mean, in De Moivre's closed form
    ``2 v C(T, v) p^v (1 - p)^(T - v + 1)`` with ``v = floor(T p) + 1``. Dimensionless.

    Args:
        tokens: T.
        num_experts: E.
        top_k: K.

    Returns:
        A number of 0 or more. NaN without tokens.

    Raises:
        ValueError: Tokens below 0, or top_k outside ``[1, num_experts]``.

    Source: De Moivre's mean absolute deviation; see Diaconis and Zabell, Statistical Science 6
    (1991) 284.

    >>> avg_vio_floor(1, num_experts=4, top_k=1)
    1.5
    """
    check_null(tokens, num_experts, top_k)
    if tokens == 0:
        return math.nan
    if top_k == num_experts:
        return 0.0
    p = top_k / num_experts
    v = tokens * top_k // num_experts + 1
    log_deviation = (
        math.log(2 * v)
        + math.lgamma(tokens + 1)
        - math.lgamma(v + 1)
        - math.lgamma(tokens - v + 1)
        + v * math.log(p)
        + (tokens - v + 1) * math.log1p(-p)
    )
    return math.exp(log_deviation) / (tokens * p)


def dead_experts_floor(tokens: int, *, num_experts: int, top_k: int) -> float:
    """Expected `dead_experts` of a uniform router, ``E (1 - K / E)^T``: exact. Experts.

    Args:
        tokens: T.
        num_experts: E.
        top_k: K.

    Returns:
        A number in ``[0, E - K]``. NaN without tokens.

    Raises:
        ValueError: Tokens below 0, or top_k outside ``[1, num_experts]``.

    Source: derived here from the null model.

    >>> dead_experts_floor(2, num_experts=4, top_k=2)
    1.0
    """
    check_null(tokens, num_experts, top_k)
    if tokens == 0:
        return math.nan
    return num_experts * (1 - top_k / num_experts) ** tokens


def load_gini_floor(tokens: int, *, num_experts: int, top_k: int) -> float:
    """Expected `load_gini` of a uniform router: exact up to a variance of 10 000, else to 1e-5.

    ``(1 - 1/E) D / (2 T p)``, where ``D`` is the expected absolute difference of two experts'
    counts: that of a walk of T steps that goes up or down with probability
    ``q = K (E - K) / (E (E - 1))`` each, which is the integral over ``[0, pi]`` of
    ``(1 - (1 - 2 q (1 - cos x))^T) / (pi (1 - cos x))``. For long walks ``2 sqrt(q T / pi)``.
    Dimensionless. Cost: at most some thousand cosines, once per ``(T, E, K)``.

    Args:
        tokens: T.
        num_experts: E.
        top_k: K.

    Returns:
        A number of 0 or more. NaN without tokens.

    Raises:
        ValueError: Tokens below 0, or top_k outside ``[1, num_experts]``.

    Source: derived here from the null model.

    >>> round(load_gini_floor(1, num_experts=4, top_k=1), 4)
    0.75
    """
    check_null(tokens, num_experts, top_k)
    if tokens == 0:
        return math.nan
    if top_k == num_experts:
        return 0.0
    difference = _expected_difference(tokens, num_experts, top_k)
    return (1 - 1 / num_experts) * difference / (2 * tokens * top_k / num_experts)


@lru_cache(maxsize=65536)
def _expected_difference(tokens: int, num_experts: int, top_k: int) -> float:
    step = top_k * (num_experts - top_k) / (num_experts * (num_experts - 1))
    variance = 2 * step * tokens
    if variance > 1e4:
        return math.sqrt(2 * variance / math.pi)
    # The midpoint rule is exact once it has more points than the walk has reachable places;
    # beyond 10 standard deviations nothing is reachable that a double could see.
    points = min(tokens, 32 + math.ceil(10 * math.sqrt(variance)))
    slope = 1 - np.cos((np.arange(points) + 0.5) * math.pi / points)
    return float(np.mean((1 - (1 - 2 * step * slope) ** tokens) / slope))
