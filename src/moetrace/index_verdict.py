"""What is wrong with one table of experts, from one window of it, with what to try.

A draw that is even by construction is uneven too, by chance. So each verdict is about what a
uniform draw would not show; and since the draws of one token belong together, chance is reckoned
with one draw a token where that is the safer side.
"""

import math
from dataclasses import dataclass

from moetrace.index_stats import IndexStats
from moetrace.metrics import coverage_floor, dead_sub_keys_floor

__all__ = ["ADVICE", "IndexVerdict", "index_verdicts"]

RARE = 1e-6
"""Below this chance a uniform draw is ruled out."""

ADVICE = (
    "possible causes are the retrieval (how queries, keys and indices are formed), the data, or "
    "the initialisation; what can be tried: the configuration of the layer (num_heads, query_dim), "
    "the mix of the training data, the learning rate and the optimizer, and how queries and keys "
    "are initialised"
)
"""Causes and levers of everything here; which of them it is, a count cannot tell."""

_NAMED = 3


@dataclass(frozen=True, slots=True)
class IndexVerdict:
    """One thing that is wrong with a table.

    Attributes:
        kind: ``"unreachable_experts"``, ``"dead_sub_keys"``, ``"low_coverage"``, ``"hot_experts"``
            or ``"persistent_hot_experts"``.
        text: What was found, without the layer's name.
        value: The figure that was judged.
        threshold: Where it begins to be said.
        floor: What chance shows of it, in the same unit.
        met: Whether it is so; what is not is there to say that something is over.
        lasting: Whether one window is too little to say it.
    """

    kind: str
    text: str
    value: float
    threshold: float
    floor: float
    met: bool
    lasting: bool = True


def index_verdicts(
    stats: IndexStats, *, coverage_threshold: float = 0.5, dead_threshold: float = 0.1
) -> list[IndexVerdict]:
    """What one window of a table shows, the most telling first; nothing where nothing was drawn.

    Args:
        stats: The window.
        coverage_threshold: Share of what a uniform draw would cover, below which it is little.
        dead_threshold: Share of the sub-keys of one half, beyond chance, from which on dead ones
            are many.

    >>> import numpy as np
    >>> from moetrace.index_stats import index_stats_of
    >>> counts = np.zeros(1024, np.int64)
    >>> counts[:63] = 100
    >>> stats = index_stats_of("ffn", counts, columns=32, scalars={"tokens": 800})
    >>> print(index_verdicts(stats)[0].text.partition(":")[0])
    6.2 % of the experts drawn, 30 of 32 row keys dead, no index above 62 of 1,024
    """
    if stats.draws <= 0:
        return []
    structural = _unreachable(stats)
    if structural.met:
        return [structural]  # all else would only follow from it
    found = [structural, *_sub_keys(stats, dead_threshold)]
    if stats.coverage is not None:
        found.append(_coverage(stats, stats.coverage, coverage_threshold))
    if stats.hot is not None and stats.busiest is not None:
        found.append(_hot(stats, stats.hot, stats.busiest))
    if stats.persistent is not None:
        found.append(_persistent(stats, stats.persistent))
    return found


def _unreachable(stats: IndexStats) -> IndexVerdict:
    """Whether all draws fall into the first part of the table, and fill it."""
    reach = stats.highest + 1
    share = reach / stats.num_experts
    by_chance = math.exp(max(-700.0, max(1, stats.tokens) * math.log(share)))
    filled = True
    if stats.used is not None:
        filled = stats.used >= 0.5 * reach * coverage_floor(stats.draws, num_experts=reach)
    met = share <= 0.5 and by_chance < RARE and filled
    covered = "" if stats.coverage is None else f"{_percent(stats.coverage)} of the experts drawn, "
    text = f"{covered}{_dead(stats)}no index above {stats.highest:,} of {stats.num_experts:,}"
    text += ": structural, not load imbalance"
    if stats.columns and max(stats.rows, stats.columns) < reach <= stats.rows + stats.columns - 1:
        text += (
            "; the indices look like sums i + j of their sub-keys, where "
            f"i * {stats.columns} + j would reach every expert"
        )
    return IndexVerdict(
        "unreachable_experts", text, 1.0 - share, 0.5, 0.0, met and stats.highest > 0, lasting=False
    )


def _dead(stats: IndexStats) -> str:
    parts = [
        f"{found.count(0)} of {len(found)} {name} keys dead, "
        for name, found in (("row", stats.row_draws), ("column", stats.column_draws))
        if found and 0 in found
    ]
    return "".join(parts)


def _sub_keys(stats: IndexStats, threshold: float) -> list[IndexVerdict]:
    if not stats.columns:
        return []
    halves = {"row": stats.row_draws, "column": stats.column_draws}
    worst: tuple[float, float, str] = (-1.0, 0.0, "")
    for name, found in halves.items():
        chance = dead_sub_keys_floor(max(1, stats.tokens), sub_keys=len(found)) / len(found)
        dead = found.count(0) / len(found)
        if dead - chance > worst[0] - worst[1] or not worst[2]:
            worst = (dead, chance, f"{found.count(0)} of {len(found)} {name} keys dead")
    dead, chance, text = worst
    text += f", where chance alone leaves {_percent(chance)} without a draw"
    return [
        IndexVerdict("dead_sub_keys", text, dead, threshold, chance, dead - chance >= threshold)
    ]


def _coverage(stats: IndexStats, coverage: float, threshold: float) -> IndexVerdict:
    chance = coverage_floor(stats.draws, num_experts=stats.num_experts)
    text = (
        f"{_percent(coverage)} of {stats.num_experts:,} experts drawn, where a uniform draw would "
        f"reach {_percent(chance)}"
    )
    # The other way round: what is missing, so that more is worse as everywhere.
    missing = 1.0 - coverage / chance
    return IndexVerdict(
        "low_coverage", text, missing, 1.0 - threshold, 0.0, missing > 1.0 - threshold
    )


def _hot(stats: IndexStats, hot: int, busiest: int) -> IndexVerdict:
    mean = stats.draws / stats.num_experts
    listed = ", ".join(
        f"expert {expert} at {draws / mean:.2f}"
        for expert, draws in list(zip(stats.hot_experts, stats.hot_draws, strict=True))[:_NAMED]
    )
    more = f" and {hot - _NAMED:,} more" if hot > _NAMED else ""
    text = f"{hot:,} hot expert{'s' if hot != 1 else ''}"
    if hot:
        text += f" ({listed}{more} times the mean over all experts)"
    sure = bool(stats.sure_hot)
    return IndexVerdict("hot_experts", text, busiest / mean, stats.threshold, 1.0, sure)


def _persistent(stats: IndexStats, persistent: int) -> IndexVerdict:
    text = f"{persistent:,} persistent hot expert{'s' if persistent != 1 else ''}"
    if persistent:
        named = ", ".join(str(expert) for expert in stats.persistent_experts[:_NAMED])
        more = f" and {persistent - _NAMED:,} more" if persistent > _NAMED else ""
        text += f" ({named}{more}: hot in four of the last five windows, or all)"
    # By chance an expert is hot in all windows only where many are: those are not sure in any.
    met = persistent > 0 and bool(stats.sure_hot)
    return IndexVerdict(
        "persistent_hot_experts", text, float(persistent), 0.0, 0.0, met, lasting=False
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
