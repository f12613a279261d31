"""The alerts of a run as spans of steps: since when, until when, in which layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moetrace.alerts import KINDS, Alert
from moetrace.report.names import shown
from moetrace.run import Run

__all__ = ["SHOWN", "Alarm", "alarms"]

SHOWN = 200
"""Alarms that the page lists: those that still hold first, then the earliest."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition of one layer, from where it began to where it was over.

    Attributes:
        kind: One of `moetrace.alerts.KINDS`.
        layer: Name of the site.
        phase: Phase whose windows were judged.
        first_step: First step of the first window that met the condition.
        last_step: Last step of the window in which it was over; None while it holds.
        text: What is wrong, with the layer's name, as it was said where it began.
        ranks: Ranks that said it: each process judges its own windows.
    """

    kind: str
    layer: str
    phase: str
    first_step: int
    last_step: int | None
    text: str
    ranks: tuple[int, ...]

    @property
    def title(self) -> str:
        """The kind in words.

        >>> Alarm("hot_experts", "mlp", "train", 1, None, "mlp: 1 hot expert", (0,)).title
        'hot experts'
        """
        return self.kind.replace("_", " ")


def alarms(run: Run) -> list[Alarm]:
    """Alerts that a run recorded; those that still hold first, then in the order of their steps.

    What several ranks said of one layer at overlapping steps is one alarm. An event that is no
    alert, whoever wrote it, is left out.
    """
    found: dict[tuple[int, str, str, str], list[Alarm]] = {}
    for event in run.events():
        alert = _alert(event)
        if alert is None:
            continue
        rank = event["rank"]
        spans = found.setdefault((rank, alert.kind, alert.layer, alert.phase), [])
        if alert.state == "started" and not (spans and spans[-1].last_step is None):
            spans.append(
                Alarm(
                    alert.kind,
                    alert.layer,
                    alert.phase,
                    alert.first_step,
                    None,
                    shown(alert.message),
                    (rank,),
                )
            )
        elif alert.state == "ended" and spans and spans[-1].last_step is None:
            spans[-1] = replace(spans[-1], last_step=alert.step)
    joined: dict[tuple[str, str, str], list[Alarm]] = {}
    for alarm in sorted(
        (alarm for spans in found.values() for alarm in spans), key=lambda item: item.first_step
    ):
        spans = joined.setdefault((alarm.kind, alarm.layer, alarm.phase), [])
        if spans and (spans[-1].last_step is None or alarm.first_step <= spans[-1].last_step):
            spans[-1] = _over_both(spans[-1], alarm)
        else:
            spans.append(alarm)
    every = [alarm for spans in joined.values() for alarm in spans]
    return sorted(every, key=lambda item: (item.last_step is not None, item.first_step))


def _alert(event: Mapping[str, Any]) -> Alert | None:
    if event.get("kind") != "alert":
        return None
    try:
        alert = Alert.from_event(event)
    except ValueError:
        return None
    whole = all(type(step) is int for step in (alert.first_step, alert.step))
    texts = all(isinstance(text, str) for text in (alert.layer, alert.phase, alert.message))
    return alert if whole and texts and alert.kind in KINDS else None


def _over_both(one: Alarm, other: Alarm) -> Alarm:
    ends = (one.last_step, other.last_step)
    last = None if None in ends else max(end for end in ends if end is not None)
    return replace(one, last_step=last, ranks=tuple(sorted({*one.ranks, *other.ranks})))
