"""Router weights in a tracker, under the keys that users of a weight tracker know."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from moetrace.alerts import Alert
from moetrace.export.weight_layers import layers_of
from moetrace.sinks.base import Sink
from moetrace.snapshot import Snapshot

__all__ = ["WeightCurves", "curves_of"]


class WeightCurves:
    """A sink that shows another one the router weights of each snapshot, and nothing else.

    Keys are ``router_weight/{layer}/{component}/{statistic}`` and
    ``router_weight/{layer}/{component}_change/{change}``; nine keys a tensor, so that a model of
    many routers has many. What is undefined has no key.

    Args:
        sink: Any sink.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, snapshot: Snapshot, /) -> None:
        """Show the weights of a snapshot that has some."""
        if snapshot.weights:
            self._sink.write(_Curves.of(snapshot))

    def alert(self, alert: Alert, /) -> None:
        """Pass it on where the sink wants alerts."""
        tell = getattr(self._sink, "alert", None)
        if callable(tell):
            tell(alert)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()


def curves_of(snapshot: Snapshot) -> dict[str, float]:
    """The numbers of the router weights of one snapshot, by key."""
    found: dict[str, float] = {}
    for layer, parts in layers_of(snapshot.weights).items():
        for component, numbers in parts.items():
            part = component.removesuffix("s") if component.endswith("_changes") else component
            for name, value in numbers.items():
                if isinstance(value, float | int):
                    found[f"router_weight/{layer}/{part}/{name}"] = float(value)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Curves(Snapshot):
    """A snapshot whose metrics are those of its weights."""

    curves: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, snapshot: Snapshot) -> "_Curves":
        same: dict[str, Any] = {
            item.name: getattr(snapshot, item.name) for item in fields(snapshot)
        }
        return cls(**{**same, "health": {}}, curves=curves_of(snapshot))

    def metrics(self, *, per_layer: bool = False) -> dict[str, float]:
        return dict(self.curves)
