"""Windows for the judge: layers whose figures a reader checks by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moetrace import Alert
from moetrace.alerts import AlertJudge, AlertRules
from moetrace.layout import FRACTION_BITS
from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot

PLAIN = AlertRules(above_floor=False, duration=1)
"""Every window for itself, its figure against the threshold."""


def layer(
    counts: Sequence[int],
    *,
    top_k: int = 1,
    name: str = "layers.0.mlp",
    entropy: float = 1.0,
    probability: Sequence[float] | None = None,
    dropped: int = 0,
    nonfinite: int = 0,
    calls: int = 1,
    scoring: str = "softmax",
) -> RoutingStats:
    """A layer with these counts; its router's probabilities follow its load unless told."""
    tokens_per_expert = np.array(counts, dtype=np.int64)
    total = int(tokens_per_expert.sum())
    tokens = (total + dropped) // top_k
    scored = tokens - nonfinite
    share = np.array(probability) if probability else tokens_per_expert / max(1, total)
    return RoutingStats(
        layer=name,
        num_experts=len(counts),
        top_k=top_k,
        scoring=scoring,
        tokens_per_expert=tokens_per_expert,
        prob_sum=np.rint(share * scored * (1 << FRACTION_BITS["prob_sum"])).astype(np.int64),
        gate_weight_sum=np.zeros(len(counts), dtype=np.int64),
        tokens=tokens,
        calls=calls,
        dropped=dropped,
        nonfinite=nonfinite,
        entropy_sum=round(entropy * scored * (1 << FRACTION_BITS["entropy_sum"])),
    )


def at(step: int, *layers: RoutingStats, phase: str = "train", every: int = 10) -> Snapshot:
    """The window that ends with this step."""
    return Snapshot("made", 0, 0, 0, phase, step - every + 1, step, 0.0, layers)


def told(judge: AlertJudge, *windows: Sequence[RoutingStats] | RoutingStats) -> list[list[Alert]]:
    """The alerts of windows that end with steps 10, 20 and so on, per window."""
    return [
        list(judge.judge(at(10 * number, *([item] if isinstance(item, RoutingStats) else item))))
        for number, item in enumerate(windows, 1)
    ]


def kinds(alerts: Sequence[Alert]) -> set[str]:
    """Their kinds."""
    return {alert.kind for alert in alerts}


def only(kind: str, alerts: Sequence[Sequence[Alert]]) -> list[tuple[str, int]]:
    """State and step of the alerts of one kind."""
    return [(item.state, item.step) for found in alerts for item in found if item.kind == kind]


def alert(**changes: Any) -> Alert:
    """An alert of an ordinary layer, or as told."""
    fields: dict[str, Any] = {
        "kind": "severe_imbalance",
        "state": "started",
        "layer": "layers.0.mlp",
        "phase": "train",
        "first_step": 1,
        "step": 20,
        "value": 4.52,
        "threshold": 4.0,
        "floor": 1.1,
        "message": "layers.0.mlp: Severe expert imbalance (ratio: 4.52)",
        "active": 2,
    }
    return Alert(**{**fields, **changes})
