"""What the counts of closed windows say: invariants that must hold, and counters that should be 0.

The same for a training that goes on and for a run on disk. Letters: T tokens, E experts, K chosen
per token.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from moetrace.diagnosis.double_softmax import (
    adds_up_to_one,
    double_softmax,
    looks_like_probabilities,
)
from moetrace.diagnosis.finding import Finding
from moetrace.printable import span_text
from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot

__all__ = ["MANY_DROPPED", "check_windows"]

MANY_DROPPED = 0.1
"""Share of dropped assignments from which they are a warning; below, a capacity limit at work."""


def check_windows(windows: Iterable[Snapshot], stated_top_k: Mapping[str, int]) -> list[Finding]:
    """What the windows say about the sites, one finding a kind.

    Args:
        windows: Windows of any phases; aborted steps are left out.
        stated_top_k: K by site, as the router states it; sites that state none may be absent.
    """
    tallies = {check.kind: _Tally() for check in _CHECKS}
    looked_at = 0
    doubles: dict[str, list[bool]] = {}
    for window in windows:
        if window.phase == "aborted":
            continue
        looked_at += 1
        for stats in window:
            looks = adds_up_to_one(stats)
            if looks is not None and stats.scoring not in ("none", "probabilities"):
                doubles.setdefault(stats.layer, []).append(looks)
            for check in _CHECKS:
                amount, of = check.measure(stats, stated_top_k.get(stats.layer, 0))
                if amount:
                    tallies[check.kind].add(window, stats.layer, amount, of)
    found = [
        check.finding(tally, looked_at)
        for check in _CHECKS
        if (tally := tallies[check.kind]).amount
    ]
    return [*found, *double_softmax(doubles)]


@dataclass(slots=True)
class _Tally:
    """Where one check fired."""

    amount: int = 0
    of: int = 0
    share_by_site: dict[str, float] = field(default_factory=dict)
    windows: set[tuple[str, int, int]] = field(default_factory=set)
    first: Snapshot | None = None

    def add(self, window: Snapshot, layer: str, amount: int, of: int) -> None:
        self.amount += amount
        self.of += of
        share = amount / of if of else 1.0
        self.share_by_site[layer] = max(share, self.share_by_site.get(layer, 0.0))
        self.windows.add((window.phase, window.first_step, window.last_step))
        if self.first is None or window.first_step < self.first.first_step:
            self.first = window

    def when(self, looked_at: int) -> str:
        """Which windows, where there is more than one to choose from."""
        if looked_at < 2 or self.first is None:
            return ""
        since = span_text(self.first.first_step, self.first.last_step)
        return f" in {len(self.windows)} of {looked_at} windows, first {since} ({self.first.phase})"


@dataclass(frozen=True, slots=True)
class _Check:
    """One thing to look for in every record of a window.

    ``measure`` returns how much of it there is, and of what; 0 where all is well. ``found`` may
    name both.
    """

    kind: str
    severity: str
    measure: Callable[[RoutingStats, int], tuple[int, int]]
    found: str
    advice: str
    mild_below: float = 0.0

    def finding(self, tally: _Tally, looked_at: int) -> Finding:
        share = tally.amount / tally.of if tally.of else 1.0
        text = self.found.format(amount=tally.amount, of=tally.of, share=share)
        sites = sorted(tally.share_by_site, key=lambda name: -tally.share_by_site[name])
        severity = "note" if share < self.mild_below else self.severity
        return Finding(self.kind, severity, text + tally.when(looked_at), self.advice, tuple(sites))


def _nonfinite(stats: RoutingStats, stated: int) -> tuple[int, int]:
    return stats.nonfinite, stats.tokens


def _out_of_range(stats: RoutingStats, stated: int) -> tuple[int, int]:
    return stats.out_of_range, stats.tokens * stats.top_k


def _contradiction(stats: RoutingStats, stated: int) -> tuple[int, int]:
    counted = int(stats.tokens_per_expert.sum()) + stats.out_of_range + stats.dropped
    counted += stats.identity
    expected = stats.tokens * stats.top_k
    missing = counted != expected and stats.top_k != 0  # with K 0 tokens have as many as they like
    broken = missing or int(stats.tokens_per_expert.min(initial=0)) < 0
    return (max(1, abs(counted - expected)), expected) if broken else (0, 0)


def _scores(stats: RoutingStats, stated: int) -> tuple[int, int]:
    """Sums of probabilities that are not one per token; `RoutingStats.withheld` says so too."""
    reason = stats.withheld().get("routing_entropy", "")
    wrong = stats.scored_tokens < 0 or "add up to" in reason
    return (int(wrong), 1) if stats.scoring != "none" else (0, 0)


def _no_probabilities(stats: RoutingStats, stated: int) -> tuple[int, int]:
    said = stats.scoring == "probabilities"
    return int(said and looks_like_probabilities(stats) is False), 1


def _masked(stats: RoutingStats, stated: int) -> tuple[int, int]:
    return (stats.masked, stats.masked) if not stats.tokens else (0, 0)


def _other_top_k(stats: RoutingStats, stated: int) -> tuple[int, int]:
    differs = stated and stats.tokens and not stats.dropped and stats.top_k != stated
    return (stats.top_k, stated) if differs else (0, 0)


def _dropped(stats: RoutingStats, stated: int) -> tuple[int, int]:
    return stats.dropped, stats.tokens * stats.top_k


_CHECKS = (
    _Check(
        "nan-logits",
        "error",
        _nonfinite,
        "{amount:,} of {of:,} tokens had NaN or infinite logits",
        "the model is diverging or was loaded wrong: stop it, and look at the router's input and "
        "weights; entropies are of the other tokens",
    ),
    _Check(
        "out-of-range",
        "error",
        _out_of_range,
        "{amount:,} of {of:,} assignments went to experts that do not exist",
        "compare num_experts of the configuration with the router's weight; sentinel ids of expert "
        "parallelism and of capacity limits look the same",
    ),
    _Check(
        "counts-contradict",
        "error",
        _contradiction,
        "counts, out-of-range and dropped assignments miss tokens x top-k by {amount:,} of {of:,}",
        "do not use the counts of these windows; report it with the run folder",
    ),
    _Check(
        "scores-contradict",
        "error",
        _scores,
        "the summed probabilities are not one per token",
        "entropies of these windows are withheld; the reader gets something else than logits",
    ),
    _Check(
        "not-probabilities",
        "error",
        _no_probabilities,
        "what is read as probabilities does not add up to 1 per token",
        "counts are right, entropies are not; let the router say scoring = 'softmax' or 'sigmoid'",
    ),
    _Check(
        "all-masked",
        "error",
        _masked,
        "all {amount:,} tokens were masked as padding, so nothing was counted",
        "look at the attention_mask, or at what tracer.tokens(mask=...) was given: 1 is a token",
    ),
    _Check(
        "other-top-k",
        "warning",
        _other_top_k,
        "tokens went to another number of experts than the router states",
        "look at what replaces the choice; balance figures use the number that was counted",
    ),
    _Check(
        "dropped",
        "warning",
        _dropped,
        "{amount:,} of {of:,} assignments ({share:.1%}) were dropped by a capacity limit",
        "these tokens skip their experts: raise the capacity factor, or balance the load",
        mild_below=MANY_DROPPED,
    ),
)
"""What is looked for, in the order in which it is told."""
