"""How many of a layer's experts one window uses: none, some, too much, or all.

Scope and letters as in `moetrace.metrics.balance`: the counts of one layer over one window, E
experts, c_e assignments, f_e the load share, u_e the utilisation. NaN where nothing was routed.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics.balance import load_share, utilisation

__all__ = [
    "active_experts",
    "dead_experts",
    "effective_experts",
    "hot_experts",
    "load_entropy",
    "load_entropy_normalized",
]

Counts = NDArray[np.integer[Any]]


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
    # np.minimum and not min: min(1.0, nan) is 1.0.
    return float(np.minimum(1.0, entropy / math.log(experts))) if experts > 1 else math.nan


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
    return float(np.minimum(np.size(tokens_per_expert), np.exp(load_entropy(tokens_per_expert))))


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
    load = utilisation(tokens_per_expert)
    return math.nan if math.isnan(load[0]) else float(np.count_nonzero(load == 0))


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
    load = utilisation(tokens_per_expert)
    return math.nan if math.isnan(load[0]) else float(np.count_nonzero(load > tau))
