"""What the router's own scores say about one window: certainty, margin, losses.

Every mean is formed from the window's sums, never as a mean of means. The sums come from the
router's full distribution over the experts (softmax of its logits, or sigmoid over their sum); a
second softmax on top would push every entropy to its maximum. All of them are NaN where no token
was scored.

Letters: E experts, K chosen per token, T tokens, p_te the router's probability.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "confidence",
    "load_balancing_loss",
    "margin",
    "routing_entropy",
    "routing_entropy_normalized",
    "z_loss",
]


def routing_entropy(entropy_sum: float, *, tokens: int) -> float:
    """Mean over tokens of the entropy of the router's distribution, ``mean_t H(p_t)``, nats.

    Args:
        entropy_sum: Sum over tokens of ``-sum_e p_te ln p_te``, nats.
        tokens: T, the tokens behind that sum.

    Returns:
        Nats in ``[0, ln E]``. NaN without tokens.

    Source: Shannon's definition, per token.

    >>> round(routing_entropy(4 * math.log(8), tokens=4), 4)
    2.0794
    """
    return _per_token(entropy_sum, tokens)


def routing_entropy_normalized(entropy_sum: float, *, tokens: int, num_experts: int) -> float:
    """Routing entropy over its largest value, ``mean_t H(p_t) / ln E``. Dimensionless.

    Args:
        entropy_sum: Sum over tokens of ``-sum_e p_te ln p_te``, nats.
        tokens: T, the tokens behind that sum.
        num_experts: E.

    Returns:
        A number in ``[0, 1]``. NaN without tokens, and for a single expert.

    Source: as `routing_entropy`.

    >>> routing_entropy_normalized(4 * math.log(8), tokens=4, num_experts=8)
    1.0
    """
    if num_experts < 2:
        return math.nan
    return _per_token(entropy_sum, tokens) / math.log(num_experts)


def confidence(confidence_sum: float, *, tokens: int) -> float:
    """Mean over tokens of the router's largest probability, ``mean_t max_e p_te``.

    The probability of the first choice alone; some tools call the sum over all K choices by the
    same name. Dimensionless.

    Args:
        confidence_sum: Sum over tokens of the largest probability.
        tokens: T, the tokens behind that sum.

    Returns:
        A number in ``[1 / E, 1]``. NaN without tokens.

    Source: maximum softmax probability, Hendrycks and Gimpel, arXiv 1610.02136.

    >>> confidence(3.0, tokens=4)
    0.75
    """
    return _per_token(confidence_sum, tokens)


def margin(margin_sum: float, *, tokens: int) -> float:
    """Mean over tokens of the lowest chosen log probability minus the highest not chosen. Nats.

    How much a softmax router's logit must move before the choice of experts changes. Negative where
    a correction bias or a group limit overrules the logits.

    Args:
        margin_sum: Sum over tokens of that difference.
        tokens: T, the tokens behind that sum.

    Returns:
        A real number; 0 or more where the logits alone decide. NaN without tokens.

    Source: the definition of a top-K gap, ``s_(K) - s_(K+1)``.

    >>> margin(2.0, tokens=4)
    0.5
    """
    return _per_token(margin_sum, tokens)


def z_loss(lse_sq_sum: float, *, tokens: int) -> float:
    """Mean over tokens of the squared log-sum-exp of the logits. Squared nats.

    Without the coefficient (about 1e-3) that a training loss multiplies it with.

    Args:
        lse_sq_sum: Sum over tokens of ``logsumexp_e(logit_te) ** 2``.
        tokens: T, the tokens behind that sum.

    Returns:
        A number of 0 or more; ``(ln E) ** 2`` when all logits are 0. NaN without tokens.

    Source: ST-MoE, arXiv 2202.08906, eq. 5.

    >>> round(z_loss(4 * math.log(8) ** 2, tokens=4), 4)
    4.3241
    """
    return _per_token(lse_sq_sum, tokens)


def load_balancing_loss(
    tokens_per_expert: NDArray[np.integer[Any]],
    prob_sum: NDArray[np.floating[Any]],
    *,
    assignments: int,
    tokens: int,
) -> float:
    """Switch load-balancing loss, ``E * sum_e f_e P_e``, without its coefficient.

    ``f_e = c_e / assignments`` with ``assignments = T * K``, so that a uniform router gives 1 for
    every K (the Switch form with K = 1 generalised; a form that divides by T alone gives K).
    ``P_e`` is the mean probability of expert e. Of the whole window, which as a
    rule is less than the mean of its micro-batches' losses. Dimensionless.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.
        prob_sum: Sum over tokens of the router's probability, shape ``(E,)``.
        assignments: ``T * K``, over all routed tokens.
        tokens: The scored tokens behind ``prob_sum``.

    Returns:
        1 for a uniform router, E when all probability and all tokens go to one expert of a top-1
        router; below 1 only where probability and load disagree. NaN without tokens.

    Raises:
        ValueError: The two arrays differ in shape.

    Source: Switch Transformer, arXiv 2101.03961, eq. 4; top-K form as in Megatron-LM
    ``switch_load_balancing_loss_func``; over a global batch, arXiv 2501.11873.

    >>> load_balancing_loss(np.array([4, 0]), np.array([3.0, 1.0]), assignments=4, tokens=4)
    1.5
    """
    if np.shape(tokens_per_expert) != np.shape(prob_sum):
        raise ValueError(
            f"found counts of shape {np.shape(tokens_per_expert)} and probabilities of shape "
            f"{np.shape(prob_sum)}; both are (E,)"
        )
    if tokens <= 0 or assignments <= 0:
        return math.nan
    share = np.asarray(tokens_per_expert, dtype=np.float64) / assignments
    return float(share.size * (share @ (np.asarray(prob_sum, dtype=np.float64) / tokens)))


def _per_token(total: float, tokens: int) -> float:
    return total / tokens if tokens > 0 else math.nan
