# pyright: strict
"""What the look-ups in one table of experts say about each condition, where they are counted."""

from collections.abc import Iterator

from moetrace.alerts.reading import Reading
from moetrace.alerts.rules import AlertRules
from moetrace.index_stats import IndexStats
from moetrace.index_verdict import index_verdicts

__all__ = ["index_readings"]

_OF_ROUTING = ("hot_experts", "persistent_hot_experts")


def index_readings(rules: AlertRules, stats: IndexStats, *, routed: bool) -> Iterator[Reading]:
    """The readings of one table in one window.

    Args:
        rules: The thresholds.
        stats: The window.
        routed: Whether the layer's routing is judged too, which then says what is hot.
    """
    off = {
        "unreachable_experts": not rules.unreachable,
        "dead_sub_keys": rules.dead_sub_keys_threshold is None,
        "low_coverage": rules.coverage_threshold is None,
        "hot_experts": rules.usage_threshold is None,
        "persistent_hot_experts": rules.persistence_threshold is None,
    }
    verdicts = index_verdicts(
        stats,
        coverage_threshold=rules.coverage_threshold or 0.5,
        dead_threshold=rules.dead_sub_keys_threshold or 0.1,
    )
    for verdict in verdicts:
        if off[verdict.kind] or (routed and verdict.kind in _OF_ROUTING):
            continue
        yield Reading(
            verdict.kind,
            verdict.value,
            verdict.threshold,
            verdict.floor,
            met=verdict.met,
            clear=not verdict.met,
            text=verdict.text,
            lasting=verdict.lasting,
        )
