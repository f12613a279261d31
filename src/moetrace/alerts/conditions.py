# pyright: strict
"""What one window of one layer shows: a reading for each condition that can be judged.

A condition whose figure is withheld (counts that contradict each other, a router without logits)
gives no reading, and what holds goes on holding. Letters: T tokens, E experts, K chosen per token,
c_e assignments, u_e the load over the mean load.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.alerts.reading import Reading, above, below
from moetrace.alerts.rules import AlertRules
from moetrace.layout import decode
from moetrace.metrics import (
    chance_of_dead,
    chance_of_maximum,
    dead_experts_floor,
    load_balancing_loss,
    max_vio_floor,
)
from moetrace.routing_stats import RoutingStats

__all__ = ["RARE", "hot_experts_of", "readings", "readings_at_once"]

RARE = 1e-6
"""Below this chance, per layer and judgement, a uniform router is ruled out."""

_NAMED = 3
_TOKENS_FOR_A_MEAN = 64
_WHOLE = 0.01


def readings(rules: AlertRules, stats: RoutingStats) -> list[Reading]:
    """Readings of everything that one window shows by itself.

    Cost: about 50 us for 128 experts; up to 2 ms more where a floor is asked for the first time.
    """
    found: list[Reading] = []
    counts = stats.tokens_per_expert
    if _whole(stats, int(counts.sum())):
        found += _balance(rules, stats, counts)
    elif stats.tokens == 0:
        return found
    if rules.dropped_threshold is not None and stats.tokens * stats.top_k > 0:
        share = stats.dropped / (stats.tokens * stats.top_k)
        text = f"{share:.1%} of the assignments dropped"
        found.append(
            above("dropped_tokens", share, rules.dropped_threshold, text, leave=rules.leave)
        )
    return found + list(_scores(rules, stats))


def readings_at_once(
    rules: AlertRules, stats: RoutingStats, *, others_called: bool
) -> Iterator[Reading]:
    """Readings that need no minimum of tokens: bad logits, and a router that is not called.

    Args:
        rules: The thresholds.
        stats: The window.
        others_called: Whether another router was called in it.
    """
    if rules.nonfinite and stats.tokens > 0:
        text = f"{stats.nonfinite} of {stats.tokens} tokens with NaN or infinite logits"
        yield above("nonfinite_logits", float(stats.nonfinite), 0.0, text, lasting=False)
    if rules.silent and (stats.calls > 0 or others_called):
        silent = float(stats.calls == 0)
        yield above("silent_router", silent, 0.0, "router not called while others are")


def hot_experts_of(rules: AlertRules, stats: RoutingStats) -> NDArray[np.int64]:
    """Experts above ``usage_threshold`` times the mean load, the hottest first.

    With ``above_floor`` only those whose load chance cannot explain.
    """
    counts = stats.tokens_per_expert
    total = int(counts.sum())
    if rules.usage_threshold is None or total == 0 or not _whole(stats, total):
        return np.zeros(0, np.int64)
    hot = np.flatnonzero(counts * stats.num_experts > rules.usage_threshold * total)
    hot = hot[np.argsort(-counts[hot], kind="stable")]
    if rules.above_floor:
        sure = sum(_not_chance(stats, int(counts[expert])) for expert in hot)
        hot = hot[:sure]
    return hot


def _balance(rules: AlertRules, stats: RoutingStats, counts: NDArray[Any]) -> Iterator[Reading]:
    experts, top_k, tokens = stats.num_experts, stats.top_k, stats.tokens
    busiest = int(counts.max())
    total = int(counts.sum())
    ratio = busiest * experts / total
    chance = rules.above_floor and stats.dropped == 0 and 1 <= top_k <= experts
    chance = chance and not stats.identity_experts  # K is not the number of experts of a token then
    if rules.alert_threshold_imbalance is not None:
        yield above(
            "severe_imbalance",
            ratio,
            rules.alert_threshold_imbalance,
            f"Severe expert imbalance (ratio: {ratio:.2f})",
            even=1.0,
            leave=rules.leave,
            floor=(
                (lambda: 1.0 + max_vio_floor(tokens, num_experts=experts, top_k=top_k))
                if chance
                else None
            ),
            sure=(lambda: _not_chance(stats, busiest)) if rules.above_floor else None,
        )
    if rules.unused_expert_threshold is not None:
        dead = experts - int(np.count_nonzero(counts))
        yield above(
            "unused_experts",
            dead / experts,
            rules.unused_expert_threshold,
            f"{dead}/{experts} experts unused",
            leave=rules.leave,
            floor=(
                (lambda: dead_experts_floor(tokens, num_experts=experts, top_k=top_k) / experts)
                if chance
                else None
            ),
            sure=(
                (lambda: chance_of_dead(tokens, num_experts=experts, top_k=top_k, dead=dead) < RARE)
                if chance
                else None
            ),
            inclusive=True,
        )
    if rules.usage_threshold is not None:
        yield _hot(rules, stats, ratio)
    if rules.collapse_threshold is not None and 1 <= top_k < experts:
        yield _collapse(rules, stats, counts, total)


def _hot(rules: AlertRules, stats: RoutingStats, ratio: float) -> Reading:
    assert rules.usage_threshold is not None
    hot = hot_experts_of(rules, stats)
    mean = float(stats.tokens_per_expert.sum()) / stats.num_experts
    listed = ", ".join(
        f"expert {expert} at {stats.tokens_per_expert[expert] / mean:.2f}"
        for expert in hot[:_NAMED].tolist()
    )
    more = f" and {hot.size - _NAMED} more" if hot.size > _NAMED else ""
    text = f"{hot.size} hot expert{'s' if hot.size != 1 else ''}"
    if hot.size:
        text += f" ({listed}{more} times the mean load)"
    return above(
        "hot_experts",
        ratio,
        rules.usage_threshold,
        text,
        even=1.0,
        leave=rules.leave,
        sure=lambda: hot.size > 0,
    )


def _collapse(rules: AlertRules, stats: RoutingStats, counts: NDArray[Any], total: int) -> Reading:
    assert rules.collapse_threshold is not None
    experts, top_k = stats.num_experts, stats.top_k
    chosen = np.argsort(-counts, kind="stable")[:top_k]
    share = float(counts[chosen].sum()) / total
    even = top_k / experts
    threshold = even + (1 - even) * rules.collapse_threshold
    named = ", ".join(map(str, chosen[:_NAMED].tolist()))
    more = f" and {top_k - _NAMED} more" if top_k > _NAMED else ""
    return above(
        "routing_collapse",
        share,
        threshold,
        f"Routing collapse ({share:.1%} of the assignments on {top_k} of {experts} experts: "
        f"{named}{more})",
        even=even,
        leave=rules.leave,
        sure=lambda: not rules.above_floor or _not_chance(stats, int(counts.max())),
        inclusive=True,
    )


def _scores(rules: AlertRules, stats: RoutingStats) -> Iterator[Reading]:
    tokens = stats.scored_tokens
    if tokens <= 0:
        return
    if rules.entropy_threshold is not None:
        entropy = decode("entropy_sum", stats.entropy_sum) / tokens
        text = f"Low routing entropy ({entropy:.4f})"
        yield below(
            "low_entropy",
            entropy,
            rules.entropy_threshold,
            text,
            leave=rules.leave,
            early=tokens >= _TOKENS_FOR_A_MEAN,
        )
    probabilities = stats.decoded("prob_sum")
    assignments = stats.tokens * stats.top_k
    counts = stats.tokens_per_expert
    if (
        abs(float(probabilities.sum()) / tokens - 1.0) > _WHOLE
        or not _whole(stats, int(counts.sum()))
        or not 1 <= stats.top_k < stats.num_experts
    ):
        return
    loss = load_balancing_loss(counts, probabilities, assignments=assignments, tokens=tokens)
    if rules.load_balancing_loss_threshold is not None:
        worst = stats.num_experts / stats.top_k
        spare = (stats.num_experts - stats.top_k) / assignments  # where routers are certain
        yield above(
            "load_balancing_loss_high",
            loss,
            min(rules.load_balancing_loss_threshold, 1.0 + (worst - 1.0) / 2),
            f"Load-balancing loss abnormally high ({loss:.4f})",
            even=1.0,
            leave=rules.leave,
            floor=(lambda: 1.0 + spare) if rules.above_floor else None,
        )
    if rules.load_balancing_loss_zero is not None:
        text = f"Load-balancing loss gone to zero ({loss:.4f})"
        zero = rules.load_balancing_loss_zero
        yield below("load_balancing_loss_zero", loss, zero, text, leave=rules.leave)


def _whole(stats: RoutingStats, total: int) -> bool:
    """Whether the counts are what tokens and K say, so that their balance can be judged."""
    expected = stats.tokens * stats.top_k
    if stats.top_k == 0:  # tokens choose different numbers of experts
        return total > 0
    return total > 0 and (
        stats.dropped > 0 or total + stats.out_of_range + stats.identity == expected
    )


def _not_chance(stats: RoutingStats, count: int) -> bool:
    # Where K varies, the next whole number above its mean: the bound is then too high, not too low.
    choices = stats.top_k or -(-int(stats.tokens_per_expert.sum()) // max(1, stats.tokens))
    bound = chance_of_maximum(
        count, stats.tokens, num_experts=stats.num_experts, top_k=min(stats.num_experts, choices)
    )
    return math.isfinite(bound) and bound < RARE
