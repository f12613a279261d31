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
    "FAR_OUT",
    "HEAVY",
    "avg_vio",
    "load_cv",
    "load_gini",
    "load_imbalance",
    "load_share",
    "max_vio",
    "min_vio",
    "utilisation",
]

Counts = NDArray[np.integer[Any]]

HEAVY, FAR_OUT = 1.0, 3.0
"""MaxVio over its floor from which a layer is heavily uneven (an expert at twice its share), or far
out of balance (four times; the 4 to 5 times of the alarms that others use)."""


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
    return utilisation(tokens_per_expert) / np.size(tokens_per_expert)


def utilisation(tokens_per_expert: Counts) -> NDArray[np.float64]:
    """Each expert's load over the mean load, ``u_e = E f_e``. Dimensionless.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        Ratios in ``[0, E]``, shape ``(E,)``, exactly 1 where the load is even; all NaN where
        nothing was routed.

    Raises:
        ValueError: The array is not one-dimensional, or empty.

    Source: Automodel ``moe/load_balance_metrics.py`` (utilisation ratio).

    >>> utilisation(np.array([3, 1, 0, 0])).tolist()
    [3.0, 1.0, 0.0, 0.0]
    """
    counts = np.asarray(tokens_per_expert, dtype=np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"tokens_per_expert: found shape {counts.shape}, expected (E,)")
    total = float(counts.sum())
    return counts * counts.size / total if total else np.full_like(counts, math.nan)


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
    return float(utilisation(tokens_per_expert).std())


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
    return float(utilisation(tokens_per_expert).max())


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
    return float(utilisation(tokens_per_expert).min()) - 1.0


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
    return float(np.abs(utilisation(tokens_per_expert) - 1.0).mean())


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
    load = np.sort(utilisation(tokens_per_expert))
    lead = 2.0 * np.arange(load.size) - (load.size - 1)
    return float(lead @ load) / load.size**2
