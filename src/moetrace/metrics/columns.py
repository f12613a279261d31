"""Three metrics of all layers of a window at once, for the log that stores them beside the counts.

The same numbers as `window_metrics`, to the bit, and withheld where that withholds them. Forming
every metric of every layer for three of them took 60 times as long.

Letters: L layers with the same number of experts E.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics.window import PROBABILITY_SLACK

__all__ = ["SHOWN", "shown_metrics"]

SHOWN = ("load_cv", "max_vio", "routing_entropy")
"""The metrics, in the order of their columns."""

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]


def shown_metrics(
    tokens_per_expert: Integers,
    *,
    tokens: Integers,
    top_k: Integers,
    out_of_range: Integers,
    dropped: Integers,
    scored: Integers,
    prob_sum: Reals,
    entropy: Reals,
    identity: Integers | int = 0,
    identity_experts: Integers | int = 0,
) -> Mapping[str, list[float | None]]:
    """Load CV, MaxVio and routing entropy of each layer; None where a metric is withheld.

    Args:
        tokens_per_expert: Assignments, shape ``(L, E)``.
        tokens: Routed tokens, shape ``(L,)`` like all that follow.
        top_k: K.
        out_of_range: Assignments to an expert that does not exist.
        dropped: Assignments that a capacity limit threw away.
        scored: Tokens behind the sums of reals; 0 where the router shows no logits.
        prob_sum: Probabilities, summed over tokens and experts.
        entropy: Token routing entropies, summed, nats.
        identity: Assignments to identity experts.
        identity_experts: How many of those can be chosen.

    Cost: some 40 us and 2 us a layer.

    >>> one = np.array([1])
    >>> shown_metrics(np.array([[3, 1]]), tokens=one * 4, top_k=one, out_of_range=one * 0,
    ...               dropped=one * 0, scored=one * 4, prob_sum=one * 4.0, entropy=one * 2.0)
    {'load_cv': [0.5], 'max_vio': [0.5], 'routing_entropy': [0.5]}
    """
    counts = np.ascontiguousarray(tokens_per_expert, dtype=np.float64)
    total = counts.sum(axis=1)
    counted = np.asarray(tokens_per_expert).sum(axis=1) + out_of_range + identity
    whole = (total > 0) & (np.min(tokens_per_expert, axis=1) >= 0)
    expected = tokens * top_k
    whole &= (dropped != 0) | (counted == expected) | (expected == 0)  # K may vary
    load = counts * counts.shape[1] / np.where(whole, total, 1.0)[:, None]
    shown = (scored > 0) & (tokens > 0)
    of = np.where(shown, scored, 1)
    rest = 1.0 - prob_sum / of
    shown &= (np.abs(rest) <= PROBABILITY_SLACK) | (
        (rest > 0.0) & (np.asarray(identity_experts) > 0)
    )
    return {
        "load_cv": _where(whole, load.std(axis=1)),
        "max_vio": _where(whole, load.max(axis=1) - 1.0),
        "routing_entropy": _where(shown, entropy / of),
    }


def _where(known: NDArray[np.bool_], values: NDArray[Any]) -> list[float | None]:
    known = known & np.isfinite(values)
    pairs = zip(known.tolist(), values.tolist(), strict=True)
    return [value if there else None for there, value in pairs]
