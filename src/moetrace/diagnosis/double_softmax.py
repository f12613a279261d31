# pyright: strict
"""Probabilities that are read as logits: what the sums of a window can tell, and when to say it."""

import math
from collections.abc import Mapping, Sequence

from moetrace.diagnosis.finding import Finding
from moetrace.layout import decode
from moetrace.routing_stats import RoutingStats

__all__ = ["adds_up_to_one", "double_softmax", "looks_like_probabilities"]

FEWEST_TOKENS = 16
"""Tokens from which means say what kind of numbers they are means of."""

ROUNDING = 5e-5
"""By how much fixed point and float32 may move a mean log-sum-exp, or its variance."""

ENOUGH_WINDOWS = 3
"""Windows that all have to look so before it is more than a note."""


def double_softmax(looks_by_site: Mapping[str, Sequence[bool]]) -> list[Finding]:
    """Sites whose logits add up to 1 per token in every window: in one it may be chance.

    Args:
        looks_by_site: What `adds_up_to_one` says of each window that tells, by site.
    """
    sites = {layer: looks for layer, looks in looks_by_site.items() if all(looks)}
    if not sites:
        return []
    sure = max(map(len, sites.values())) >= ENOUGH_WINDOWS
    text = "what is read as logits adds up to 1 per token: entropies are of a second softmax"
    if not sure:
        text = "what is read as logits may be probabilities, and entropies of a second softmax"
    advice = "counts are right; read them with a reader whose router says scoring = 'probabilities'"
    if not sure:
        advice = f"ask tracer.doctor(inputs), or again after {ENOUGH_WINDOWS} windows"
    severity = "error" if sure else "note"
    return [Finding("logits-are-probabilities", severity, text, advice, tuple(sites))]


def looks_like_probabilities(stats: RoutingStats) -> bool | None:
    """Whether what the router shows as logits adds up to 1 per token; None where nothing tells.

    The log-sum-exp of E probabilities lies between ``ln E + 1/E`` (all equal) and ``ln(E - 1 + e)``
    (all on one), as it is convex and symmetric; its variance is at most a quarter of the square of
    that range (Popoviciu). For E = 8 that is a mean in [2.204, 2.273] and a variance below 0.0012:
    logits of a spread s have a variance of about s * s / E.
    """
    T, E = stats.scored_tokens, stats.num_experts
    if T < FEWEST_TOKENS or E < 2:
        return None
    mean = decode("lse_sum", stats.lse_sum) / T
    variance = decode("lse_sq_sum", stats.lse_sq_sum) / T - mean * mean
    low, high = math.log(E) + 1 / E, math.log(E - 1 + math.e)
    if not low - ROUNDING <= mean <= high + ROUNDING:
        return False
    return variance <= (high - low) ** 2 / 4 + ROUNDING


def adds_up_to_one(stats: RoutingStats) -> bool | None:
    """`looks_like_probabilities` with the entropy held against it: few logits pass by chance.

    For probabilities p and their softmax q the mean of ``lse + H - 2 ln E - 1/E``, with H the
    entropy of q, lies between 0 (all equal) and its value for all on one, to ``0.02 / E^2``
    (measured on Dirichlet draws from 0.001 to 10, E from 2 to 512). For E = 16 the band is 0.012
    wide, a third of that of the log-sum-exp alone.
    """
    looks = looks_like_probabilities(stats)
    if not looks:
        return looks
    T, E = stats.scored_tokens, stats.num_experts
    lse = decode("lse_sum", stats.lse_sum) / T
    entropy = decode("entropy_sum", stats.entropy_sum) / T
    on_one = math.log(E - 1 + math.e)
    extreme = 2 * on_one - math.e / (E - 1 + math.e) - 2 * math.log(E) - 1 / E
    held = lse + entropy - 2 * math.log(E) - 1 / E
    return min(0.0, extreme) - ROUNDING <= held <= max(0.0, extreme) + ROUNDING + 0.02 / E**2
