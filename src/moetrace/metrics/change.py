"""How far a router moved between two windows: its load, and the bias it balances itself with.

A router that learns moves; one that does not move at all, window after window, is frozen. Letters:
E experts, f_e the load share of one window.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics.balance import load_share
from moetrace.metrics.noise_floor import check_null

__all__ = ["bias_drift", "load_change", "load_change_floor"]

Counts = NDArray[np.integer[Any]]


def load_change(before: Counts, tokens_per_expert: Counts) -> float:
    """Share of the load that sits on other experts than before, ``sum_e abs(f_e - f'_e) / 2``.

    The total variation distance of two windows' load shares. Exactly 0 only where the shares are
    the same: on fresh data that is a router that does not choose by its input. Dimensionless.

    Args:
        before: Assignments per expert in the window before, shape ``(E,)``.
        tokens_per_expert: Assignments per expert, shape ``(E,)``.

    Returns:
        A number in ``[0, 1]``. NaN where nothing was routed in one of them.

    Raises:
        ValueError: The two differ in shape.

    Source: total variation distance, the definition.

    >>> load_change(np.array([2, 2, 0, 0]), np.array([2, 0, 2, 0]))
    0.5
    """
    if np.shape(before) != np.shape(tokens_per_expert):
        raise ValueError(
            f"found counts of shape {np.shape(before)} and {np.shape(tokens_per_expert)}; a load "
            "can be compared only with one of the same experts"
        )
    return float(np.abs(load_share(tokens_per_expert) - load_share(before)).sum()) / 2


def load_change_floor(tokens: int, *, num_experts: int, top_k: int) -> float:
    """Expected `load_change` of two windows of a uniform router with T tokens each.

    ``sqrt((1 - K / E) E / (pi T K))``: the mean absolute difference of two normals with the
    variance of an expert's count. Within 2 % of simulation where an expert gets 4 tokens or more.
    Dimensionless.

    Args:
        tokens: T.
        num_experts: E.
        top_k: K.

    Returns:
        A number of 0 or more. NaN without tokens.

    Raises:
        ValueError: Tokens below 0, or top_k outside ``[1, num_experts]``.

    Source: derived here from the null model of `moetrace.metrics.noise_floor`.

    >>> round(load_change_floor(4096, num_experts=64, top_k=6), 4)
    0.0274
    """
    check_null(tokens, num_experts, top_k)
    if tokens == 0:
        return math.nan
    p = top_k / num_experts
    return math.sqrt((1 - p) / (math.pi * tokens * p))


def bias_drift(bias: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]]) -> float:
    """How far an expert's balancing bias has moved, at most: ``max_e abs(d_e - mean(d))``.

    ``d = bias - reference``. The mean is taken off, since a number added to every expert's bias
    changes no choice. In the unit of the bias, which is that of the scores it is added to.

    Args:
        bias: Balancing bias per expert, shape ``(E,)``.
        reference: The same of another time, shape ``(E,)``; zeros for what it was made with.

    Returns:
        A number of 0 or more. NaN where one of them is not finite.

    Raises:
        ValueError: The two differ in shape, or are empty.

    Source: the bias is that of loss-free balancing, arXiv 2408.15664, sec. 3.

    >>> bias_drift(np.array([0.5, 0.0, 0.0, 0.0]), np.zeros(4))
    0.375
    """
    if np.shape(bias) != np.shape(reference) or np.size(bias) == 0:
        raise ValueError(
            f"found biases of shape {np.shape(bias)} and {np.shape(reference)}; both are (E,)"
        )
    moved = np.asarray(bias, np.float64) - np.asarray(reference, np.float64)
    return float(np.abs(moved - moved.mean()).max())
