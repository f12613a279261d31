"""All metrics of one window of one layer, and why some of them are withheld.

A metric is withheld when the counts under it contradict each other, or when nothing was counted
that it could be formed of. A withheld metric has a reason and no value: 0.0 would be a lie.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics import balance, expected_maximum, noise_floor, routing_scores, usage

__all__ = ["BALANCE", "FLOORS", "METRICS", "MICRO", "SCORES", "ScoreSums", "window_metrics"]

BALANCE = {
    "load_cv": balance.load_cv,
    "load_imbalance": balance.load_imbalance,
    "max_vio": balance.max_vio,
    "min_vio": balance.min_vio,
    "avg_vio": balance.avg_vio,
    "load_gini": balance.load_gini,
    "load_entropy": usage.load_entropy,
    "load_entropy_normalized": usage.load_entropy_normalized,
    "effective_experts": usage.effective_experts,
    "dead_experts": usage.dead_experts,
    "active_experts": usage.active_experts,
    "hot_experts": usage.hot_experts,
}
"""Metrics of the counts alone."""

FLOORS = {
    "load_cv": noise_floor.load_cv_floor,
    "max_vio": expected_maximum.max_vio_floor,
    "avg_vio": noise_floor.avg_vio_floor,
    "load_gini": noise_floor.load_gini_floor,
    "dead_experts": noise_floor.dead_experts_floor,
}
"""The floor of a uniform router, by the metric that it belongs to."""

SCORES = (
    "routing_entropy",
    "routing_entropy_normalized",
    "confidence",
    "margin",
    "load_balancing_loss",
    "z_loss",
)
"""Metrics of the router's scores."""

MICRO = {"micro_max_vio": "max_vio", "micro_load_balancing_loss": "load_balancing_loss"}
"""The scope of one micro-batch of one rank, and the window's figure that it is the same as there.

Of a window both are less, as a rule: what is uneven in one micro-batch evens out over many.
"""

METRICS = (
    *BALANCE,
    *(f"{name}_{part}" for name in FLOORS for part in ("floor", "excess")),
    *SCORES,
    *MICRO,
)
"""Every key of `window_metrics`, in its order."""


PROBABILITY_SLACK = 0.01
"""How far the mean of a token's summed probabilities may be from 1 before scores are withheld."""


@dataclass(frozen=True, slots=True)
class ScoreSums:
    """The sums of reals of one window of one layer, as real numbers.

    Attributes:
        tokens: Tokens behind the sums: those with finite logits.
        prob_sum: Probability per expert, shape ``(E,)``.
        entropy: Token routing entropies, nats.
        confidence: Largest probabilities.
        margin: Lowest chosen logit minus highest one not chosen.
        lse_sq: Squared log-sum-exp of the logits; None where the router shows probabilities.
    """

    tokens: int
    prob_sum: NDArray[np.float64]
    entropy: float
    confidence: float
    margin: float
    lse_sq: float | None


def window_metrics(
    tokens_per_expert: NDArray[np.int64],
    *,
    tokens: int,
    top_k: int,
    out_of_range: int,
    dropped: int,
    scores: ScoreSums | None,
    calls: int = 0,
    identity: int = 0,
    identity_experts: int = 0,
) -> tuple[dict[str, float], dict[str, str]]:
    """Every metric of one window of one layer, and the reason where there is none.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.
        tokens: Routed tokens, T.
        top_k: Experts chosen per token, K; 0 where that varies.
        out_of_range: Assignments to an expert that does not exist.
        dropped: Assignments that a capacity limit threw away.
        scores: Sums of the router's scores, or None where it shows none.
        calls: Forwards of the router, over all ranks.
        identity: Assignments to identity experts, which compute nothing: in no balance figure.
        identity_experts: How many of those can be chosen.

    Returns:
        Two dicts whose keys together are `METRICS`, none in both: values, and reasons.

    >>> values, reasons = window_metrics(np.array([3, 1]), tokens=4, top_k=1, out_of_range=0,
    ...                                  dropped=0, scores=None)
    >>> values["max_vio"], reasons["z_loss"]
    (0.5, 'the router shows no logits')
    """
    experts = int(tokens_per_expert.size)
    counted = sum(tokens_per_expert.tolist()) + out_of_range + identity
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}

    broken = _broken_counts(tokens_per_expert, counted, tokens * top_k, dropped)
    if broken is None:
        values.update({name: metric(tokens_per_expert) for name, metric in BALANCE.items()})
    else:
        reasons.update(dict.fromkeys(BALANCE, broken))

    no_floor = broken or _beside_identity(identity_experts)
    no_floor = no_floor or _no_null(counted, out_of_range, tokens, top_k, experts)
    for name, floor in FLOORS.items():
        if no_floor is None:
            expected = floor(tokens, num_experts=experts, top_k=top_k)
            values[f"{name}_floor"] = expected
            values[f"{name}_excess"] = values[name] - expected
        else:
            reasons[f"{name}_floor"] = reasons[f"{name}_excess"] = no_floor

    no_scores = _no_scores(scores, tokens, whole=not identity_experts)
    if scores is None or no_scores is not None:
        reasons.update(dict.fromkeys(SCORES, no_scores or ""))
    else:
        columns = experts + identity_experts
        values.update(_score_metrics(scores, columns))
        no_loss = broken or _beside_identity(identity_experts)
        if no_loss is None:
            values["load_balancing_loss"] = routing_scores.load_balancing_loss(
                tokens_per_expert,
                scores.prob_sum,
                assignments=tokens * top_k if top_k else counted,
                tokens=scores.tokens,
            )
        else:
            reasons["load_balancing_loss"] = no_loss
        if scores.lse_sq is None:
            reasons["z_loss"] = "the router shows probabilities, not logits"
        if top_k >= columns:
            reasons["margin"] = "every expert is chosen: there is no margin"
    for name, same in MICRO.items():
        if calls != 1:
            reasons[name] = f"found {calls} forwards; it is of one, so of windows that hold one"
        elif same in reasons or same not in values:
            reasons[name] = reasons[same]
        else:
            values[name] = values[same]
    for name, value in values.items():
        if not math.isfinite(value):
            reasons[name] = "it is not defined for a single expert"
    return {k: values[k] for k in METRICS if k not in reasons}, {
        k: reasons[k] for k in METRICS if k in reasons
    }


def _score_metrics(scores: ScoreSums, columns: int) -> dict[str, float]:
    tokens = scores.tokens
    return {
        "routing_entropy": routing_scores.routing_entropy(scores.entropy, tokens=tokens),
        "routing_entropy_normalized": routing_scores.routing_entropy_normalized(
            scores.entropy, tokens=tokens, num_experts=columns
        ),
        "confidence": routing_scores.confidence(scores.confidence, tokens=tokens),
        "margin": routing_scores.margin(scores.margin, tokens=tokens),
    } | (
        {}
        if scores.lse_sq is None
        else {"z_loss": routing_scores.z_loss(scores.lse_sq, tokens=tokens)}
    )


def _broken_counts(
    tokens_per_expert: NDArray[Any], counted: int, expected: int, dropped: int
) -> str | None:
    if expected == 0 and counted == 0:
        return "nothing was routed"
    if tokens_per_expert.min() < 0:
        return f"found a count of {int(tokens_per_expert.min())}; counts start at 0"
    if dropped == 0 and counted != expected and expected:
        return f"found {counted} assignments where tokens * top_k is {expected}"
    if not tokens_per_expert.any():
        return "no assignment reached an expert that exists"
    return None


def _beside_identity(identity_experts: int) -> str | None:
    if identity_experts == 0:
        return None
    return (
        f"tokens choose among {identity_experts} identity experts too: how many experts a token "
        "has varies"
    )


def _no_null(counted: int, out_of_range: int, tokens: int, top_k: int, experts: int) -> str | None:
    if top_k == 0:
        return "the number of experts varies from token to token: no top-K choice to compare with"
    if counted != tokens * top_k:
        return f"found {counted} assignments after dropping; the floor needs all {tokens * top_k}"
    if out_of_range:
        return f"found {out_of_range} assignments to experts that do not exist"
    if not 1 <= top_k <= experts:
        return f"top_k is {top_k} of {experts} experts: no top-K choice to compare with"
    return None


def _no_scores(scores: ScoreSums | None, tokens: int, *, whole: bool) -> str | None:
    if scores is None:
        return "the router shows no logits"
    if tokens == 0:
        return "nothing was routed"
    if scores.tokens == 0:
        return f"the logits of all {tokens} tokens are NaN or infinite"
    if scores.tokens < 0:
        return f"found more tokens with bad logits than the {tokens} routed"
    total = float(scores.prob_sum.sum()) / scores.tokens
    if total > 1.0 + PROBABILITY_SLACK or (whole and total < 1.0 - PROBABILITY_SLACK):
        return f"the probabilities of a token add up to {total:.4f} on average, not to 1"
    return None
