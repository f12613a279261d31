# pyright: strict
"""One alert: a condition of one layer that has begun, or that is over."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

__all__ = ["KINDS", "Alert"]

KINDS = (
    "severe_imbalance",
    "unused_experts",
    "low_entropy",
    "hot_experts",
    "persistent_hot_experts",
    "routing_collapse",
    "load_balancing_loss_high",
    "load_balancing_loss_zero",
    "dropped_tokens",
    "frozen_router",
    "nonfinite_logits",
    "silent_router",
    "nonfinite_weights",
    "unchanged_weights",
    "weight_growth",
    "reset_weights",
    "unreachable_experts",
    "dead_sub_keys",
    "low_coverage",
)
"""Every kind of alert; each has a page entry in ``docs/alerts.md``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    r"""A condition of one layer that has begun, or that is over.

    Attributes:
        kind: One of `KINDS`.
        state: ``"started"`` or ``"ended"``. What has started and not ended still holds.
        layer: Name of the site.
        phase: Phase whose windows were judged.
        first_step: First step of the first window that met the condition.
        step: Last step of the window in which it was raised, or in which it was over.
        value: The figure that was judged, in the unit of its threshold.
        threshold: The value at which the condition begins.
        floor: What a uniform router would show by chance, in the same unit; 0 where chance plays
            no part. With ``above_floor`` the condition is about what exceeds it.
        message: The layer's name and what is wrong, in words.
        active: Layers in which this kind holds after this alert.
        wall_time: Unix time at which the window closed, seconds; informative only.

    >>> alert = Alert(kind="unused_experts", state="started", layer="layers.4.mlp", phase="train",
    ...               first_step=2201, step=2300, value=0.375, threshold=0.25, floor=0.0,
    ...               message="layers.4.mlp: 3/8 experts unused")
    >>> alert.line.encode("ascii", "backslashreplace").decode()
    '\\u26a0\\ufe0f  MoE Alert at step 2300: layers.4.mlp: 3/8 experts unused'
    """

    kind: str
    state: Literal["started", "ended"]
    layer: str
    phase: str
    first_step: int
    step: int
    value: float
    threshold: float
    floor: float
    message: str
    active: int = 1
    wall_time: float = 0.0

    @property
    def line(self) -> str:
        """The line that a console shows; names in it are as they are, see `moetrace.printable`."""
        if self.state == "started":
            return f"\u26a0\ufe0f  MoE Alert at step {self.step}: {self.message}"
        since = f"(since step {self.first_step})"
        return f"\u26a0\ufe0f  MoE Alert over at step {self.step}: {self.message} {since}"

    def to_dict(self) -> dict[str, Any]:
        """The alert as plain numbers and strings."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def to_event(self) -> dict[str, Any]:
        """The fields of its event in a run folder: an event of kind ``"alert"`` names it there."""
        record = self.to_dict()
        return {"alert": record.pop("kind"), **record}

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Self:
        """The alert of an event that `to_event` wrote; what an event holds beside it is left out.

        Raises:
            ValueError: It is no alert's event.
        """
        names = {item.name for item in fields(cls)} - {"kind"}
        try:
            known = {name: value for name, value in event.items() if name in names}
            return cls(kind=event["alert"], **known)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the event of an alert: {error}") from error
