"""What moetrace recorded of the routers, in bits. The experts of its records are precisions.

Letters: P precisions, L layers.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import moetrace

__all__ = ["ALERTS", "AlertLog", "LayerChoice", "collapse_of", "layer_choices"]

_log = logging.getLogger("layerwise")

ALERTS = moetrace.AlertRules(
    alert_threshold_imbalance=None,
    unused_expert_threshold=None,
    usage_threshold=None,
    persistence_threshold=None,
    entropy_threshold=None,
    load_balancing_loss_threshold=None,
    load_balancing_loss_zero=None,
)
"""What stays worth an alert: collapse, a frozen or silent router, numbers that are not finite.

A precision that nobody uses is no fault, as a dead expert would be: a layer may well need 4 bits
for every text.
"""

_ALL = 0.99


class AlertLog:
    """A sink of moetrace that logs its alerts in the words of precisions, and keeps them.

    Attributes:
        alerts: Those so far.

    Args:
        precisions: Bits to choose from.
    """

    def __init__(self, precisions: Sequence[int]) -> None:
        self.alerts: list[moetrace.Alert] = []
        self._choices = len(precisions)

    def write(self, snapshot: moetrace.Snapshot) -> None:
        """Nothing: the run folder has it."""

    def alert(self, alert: moetrace.Alert) -> None:
        """One line; that a layer has settled on one precision is no fault by itself."""
        self.alerts.append(alert)
        if alert.kind != "routing_collapse":
            _log.warning("%s", alert.line)
            return
        how = "has settled" if alert.state == "started" else "has not settled any more"
        text = "%s %s at step %d: %.1f %% of the sequences get the same one of %d precisions"
        _log.info(text, alert.layer, how, alert.step, 100 * alert.value, self._choices)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What the router of one layer chose over some windows.

    Attributes:
        layer: Its name.
        precisions: Bits to choose from.
        counts: Sequences that were given each precision, the most probable one.
        expected: Mean of the bits that the probabilities expect.
        entropy: Mean entropy of a choice, nats: 0 where the router is sure.
    """

    layer: str
    precisions: tuple[int, ...]
    counts: tuple[int, ...]
    expected: float
    entropy: float

    @property
    def average(self) -> float:
        """Mean bits of the choices.

        >>> LayerChoice("0", (3, 4), (3, 1), 3.2, 0.5).average
        3.25
        """
        pairs = zip(self.precisions, self.counts, strict=True)
        return sum(bits * count for bits, count in pairs) / max(sum(self.counts), 1)

    @property
    def usual(self) -> int:
        """The precision that was chosen most often."""
        return self.precisions[int(np.argmax(self.counts))]

    @property
    def share(self) -> float:
        """Share of the sequences that got it."""
        return max(self.counts) / max(sum(self.counts), 1)

    def line(self) -> str:
        """The choice in one line.

        >>> LayerChoice("mlp", (3, 4), (3, 1), 3.2, 0.5).line()
        'mlp: 3 bit 75 %, 4 bit 25 %; average 3.25, expected 3.20, entropy 0.50 nats'
        """
        whole = max(sum(self.counts), 1)
        shares = ", ".join(
            f"{bits} bit {100 * count / whole:.0f} %"
            for bits, count in zip(self.precisions, self.counts, strict=True)
            if count
        )
        return (
            f"{self.layer}: {shares}; average {self.average:.2f}, expected {self.expected:.2f}, "
            f"entropy {self.entropy:.2f} nats"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "average": self.average}


def layer_choices(
    snapshots: Iterable[moetrace.Snapshot], precisions: Sequence[int]
) -> list[LayerChoice]:
    """What each layer chose in these windows, in the order of the layers.

    Counts and sums of the windows are added first, and divided then.
    """
    bits_P = np.asarray(precisions, dtype=float)
    found: dict[str, list[moetrace.RoutingStats]] = {}
    for snapshot in snapshots:
        for stats in snapshot:
            found.setdefault(stats.layer, []).append(stats)
    choices = []
    for layer, parts in found.items():
        counts_P = sum(stats.tokens_per_expert for stats in parts)
        scored = max(sum(stats.scored_tokens for stats in parts), 1)
        expected = sum(float(stats.decoded("prob_sum") @ bits_P) for stats in parts) / scored
        entropy = sum((stats.mean("entropy_sum") or 0.0) * stats.scored_tokens for stats in parts)
        choices.append(
            LayerChoice(
                layer,
                tuple(precisions),
                tuple(int(count) for count in np.atleast_1d(counts_P)),
                expected,
                entropy / scored,
            )
        )
    return choices


def collapse_of(choices: Sequence[LayerChoice]) -> str | None:
    """What is said where every layer gives (almost) every sequence the same precision, else None.

    >>> collapse_of([LayerChoice(name, (3, 4), (100, 0), 3.0, 0.0) for name in "ab"])
    'all 2 layers at 3 bit: the routers do not look at the text'
    """
    usual = {choice.usual for choice in choices}
    if len(usual) != 1 or any(choice.share < _ALL for choice in choices):
        return None
    return f"all {len(choices)} layers at {usual.pop()} bit: the routers do not look at the text"
