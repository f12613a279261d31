"""How evenly one window's assignments fall on the experts of one layer.

Scope: every function takes the counts of ONE layer over ONE window (and whatever ranks were added
into it); the same formula over a micro-batch or over one rank gives another, larger, number. All
of them are NaN where nothing was routed.

Letters: E experts, K chosen per token, c_e assignments to expert e, f_e = c_e / sum(c) the load
share, u_e = E * f_e the utilisation (1 is fair).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "active_experts",
    "avg_vio",
    "dead_experts",
    "effective_experts",
    "hot_experts",
    "load_cv",
    "load_entropy",
    "load_entropy_normalized",
    "load_gini",
    "load_imbalance",
    "load_share",
    "max_vio",
    "min_vio",
]

Counts = NDArray[np.integer[Any]]


def load_share(tokens_per_expert: Counts) -> NDArray[np.float64]:
    """Share of the assignments that each expert got, ``c_e / sum(c)``.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        Shares in ``[0, 1]``, shape ``(E,)``, that add up to 1; all NaN where nothing was routed.

    Raises:
        ValueError: The array is not one-dimensional, or empty.

    Source: Switch Transformer, arXiv 2101.03961, eq. 5 (``f_i``).

    >>> load_share(np.array([3, 1, 0, 0])).tolist()
    [0.75, 0.25, 0.0, 0.0]
    """
    counts = np.asarray(tokens_per_expert, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"tokens_per_expert: found shape {counts.shape}, expected (E,)")
    total = float(counts.sum())
    return counts / total if total else np.full_like(counts, math.nan)


def load_cv(tokens_per_expert: Counts) -> float:
    """Coefficient of variation of the load, ``std(c) / mean(c)``; 0 is even.

    The standard deviation is the population's: the E experts are all there are. (The sample form
    of torch's default is larger by ``sqrt(E / (E - 1))``.) Dimensionless.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A number in ``[0, sqrt(E - 1)]``. NaN where nothing was routed.

    Source: the definition; as a measure of expert load, Shazeer et al., arXiv 1701.06538, sec. 4.

    >>> round(load_cv(np.array([8, 0, 0, 0, 0, 0, 0, 0])), 4)
    2.6458
    """
    share = load_share(tokens_per_expert)
    return float(share.std() * share.size)


def load_imbalance(tokens_per_expert: Counts) -> float:
    """Heaviest expert's load over the mean load, ``max_e u_e``; 1 is even.

    ``E / K`` when all tokens pick the same K experts. Dimensionless.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A ratio in ``[1, E]``. NaN where nothing was routed.

    Source: OLMo-core ``nn/moe/router.py`` (load imbalance).

    >>> load_imbalance(np.array([3, 1, 0, 0]))
    3.0
    """
    share = load_share(tokens_per_expert)
    return float(share.max() * share.size)


def max_vio(tokens_per_expert: Counts) -> float:
    """Maximal violation, ``max_e u_e - 1``: how far the heaviest expert is over the mean.

    Of a window, hence neither MaxVio_batch (one training batch) nor MaxVio_global (a whole
    validation set). Dimensionless.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A number in ``[0, E - 1]``; at most ``E / K - 1`` for a top-K router. NaN where nothing was
        routed.

    Source: loss-free balancing, arXiv 2408.15664, eq. 4.

    >>> max_vio(np.array([3, 1, 0, 0]))
    2.0
    """
    return load_imbalance(tokens_per_expert) - 1.0


def min_vio(tokens_per_expert: Counts) -> float:
    """Minimal violation, ``min_e u_e - 1``: how far the lightest expert is under the mean.

    -1 as soon as one expert got nothing. Dimensionless.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A number in ``[-1, 0]``. NaN where nothing was routed.

    Source: verl ``trainer/ppo/metric_utils.py``.

    >>> min_vio(np.array([6, 4, 4, 2]))
    -0.5
    """
    share = load_share(tokens_per_expert)
    return float(share.min() * share.size) - 1.0


def avg_vio(tokens_per_expert: Counts) -> float:
    """Average violation, ``mean_e abs(u_e - 1)``.

    Half of it is the fraction of all assignments that would have to move to make the load even.
    Dimensionless.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A number in ``[0, 2 - 2 / E]``. NaN where nothing was routed.

    Source: verl ``trainer/ppo/metric_utils.py``.

    >>> avg_vio(np.array([6, 4, 4, 2]))
    0.25
    """
    share = load_share(tokens_per_expert)
    return float(np.abs(share * share.size - 1.0).mean())


def load_gini(tokens_per_expert: Counts) -> float:
    """Gini coefficient of the load, ``sum_ij abs(c_i - c_j) / (2 E^2 mean(c))``; 0 is even.

    Dimensionless. Cost: one sort of E numbers.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A number in ``[0, 1 - 1 / E]``. NaN where nothing was routed.

    Source: the definition (mean absolute difference over twice the mean).

    >>> load_gini(np.array([3, 1, 0, 0]))
    0.625
    """
    share = np.sort(load_share(tokens_per_expert))
    lead = 2.0 * np.arange(share.size) - (share.size - 1)
    return float(lead @ share) / share.size


def load_entropy(tokens_per_expert: Counts) -> float:
    """Entropy of the load share, ``-sum_e f_e ln f_e``, nats.

    Says how the load is spread over the experts; how undecided the router is about one token is
    the routing entropy, another thing: a router may be certain of every token and even overall.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        Nats in ``[0, ln E]``. NaN where nothing was routed.

    Source: Shannon's definition; on the load, Automodel ``moe/load_balance_metrics.py``.

    >>> round(load_entropy(np.array([1, 1, 0, 0])), 4)
    0.6931
    """
    share = load_share(tokens_per_expert)
    if math.isnan(share[0]):
        return math.nan
    busy = share[share > 0]
    return max(0.0, -float(busy @ np.log(busy)))


def load_entropy_normalized(tokens_per_expert: Counts) -> float:
    """Load entropy over its largest value, ``H(f) / ln E``; 1 is even. Dimensionless.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A number in ``[0, 1]``. NaN where nothing was routed, and for a single expert.

    Source: as `load_entropy`.

    >>> load_entropy_normalized(np.array([1, 1, 0, 0]))
    0.5
    """
    entropy = load_entropy(tokens_per_expert)
    experts = np.size(tokens_per_expert)
    return min(1.0, entropy / math.log(experts)) if experts > 1 else math.nan


def effective_experts(tokens_per_expert: Counts) -> float:
    """Number of evenly loaded experts with the same load entropy, ``exp(H(f))``. Experts.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A number in ``[1, E]``. NaN where nothing was routed.

    Source: Automodel ``moe/load_balance_metrics.py``; the exponential of an entropy is Hill's
    diversity number of order 1.

    >>> round(effective_experts(np.array([1, 1, 0, 0])), 4)
    2.0
    """
    return math.exp(load_entropy(tokens_per_expert))


def dead_experts(tokens_per_expert: Counts) -> float:
    """Experts that got nothing in this window, ``#{e: c_e = 0}``. Experts.

    Of this window only. An expert that is idle for one window is not one that was never used:
    a short window leaves experts idle by chance (`dead_experts_floor`).

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A whole number in ``[0, E - 1]``. NaN where nothing was routed.

    Source: Automodel ``moe/load_balance_metrics.py`` (dead fraction).

    >>> dead_experts(np.array([3, 1, 0, 0]))
    2.0
    """
    share = load_share(tokens_per_expert)
    return math.nan if math.isnan(share[0]) else float(np.count_nonzero(share == 0))


def active_experts(tokens_per_expert: Counts) -> float:
    """Experts that got something in this window, ``#{e: c_e > 0}``. Experts.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A whole number in ``[1, E]``. NaN where nothing was routed.

    Source: llm720 ``llm/utils/experts/tracking.py`` (coverage is this over E).

    >>> active_experts(np.array([3, 1, 0, 0]))
    2.0
    """
    return float(np.size(tokens_per_expert)) - dead_experts(tokens_per_expert)


def hot_experts(tokens_per_expert: Counts, *, tau: float = 5.0) -> float:
    """Experts with more than ``tau`` times the mean load, ``#{e: u_e > tau}``. Experts.

    A top-K router cannot load an expert beyond ``E / K`` times the mean, so with E = 8 and K = 2
    nothing is ever hot at 5: choose a tau below ``E / K`` there.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.
        tau: Threshold in multiples of the mean load.

    Returns:
        A whole number in ``[0, E / tau)``. NaN where nothing was routed.

    Source: llm720 ``llm/utils/experts/tracking.py`` (tau = 5).

    >>> hot_experts(np.array([94, 1, 1, 1, 1, 1, 1, 0]))
    1.0
    """
    share = load_share(tokens_per_expert)
    if math.isnan(share[0]):
        return math.nan
    return float(np.count_nonzero(share * share.size > tau))
