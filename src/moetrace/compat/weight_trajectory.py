"""One number of one router weight over the steps, out of the windows of a run."""

from collections.abc import Iterable, Sequence

from moetrace.export.weight_layers import CHANGES, STATISTICS, layers_of, parts_of
from moetrace.snapshot import Snapshot
from moetrace.weight_stats import WeightStats

__all__ = ["WeightTrajectory", "trajectory_of"]


class WeightTrajectory(list[float]):
    """One number of one weight over the steps; where it is undefined there is no entry.

    Attributes:
        steps: The step of each entry.
    """

    def __init__(self, values: Sequence[float] = (), steps: Sequence[int] = ()) -> None:
        super().__init__(values)
        self.steps = list(steps)


def trajectory_of(
    snapshots: Iterable[Snapshot],
    layer_key: str,
    weight_name: str,
    *,
    first: int | None = None,
    last: int | None = None,
) -> WeightTrajectory:
    """One number of one weight, by the step at the end of each window that has it.

    Args:
        snapshots: The windows in their order.
        layer_key: A layer, ``"layer_0"``.
        weight_name: Component and statistic, or component and change, joined by a dot.
        first: First step to take; None from the beginning.
        last: Last step to take, itself included; None to the end.

    Raises:
        KeyError: There are records, but no such layer or weight in any of them.
    """
    component, _, name = weight_name.partition(".")
    found = WeightTrajectory()
    known: dict[str, set[str]] = {}
    for snapshot in snapshots:
        for stats in snapshot.weights:
            known.setdefault(stats.layer, set()).update(_names(stats))
        numbers = layers_of(snapshot.weights).get(layer_key, {}).get(component, {})
        value = numbers.get(name)
        after = first is None or first <= snapshot.last_step
        before = last is None or snapshot.last_step <= last
        if isinstance(value, float | int) and after and before:
            found.append(float(value))
            found.steps.append(snapshot.last_step)
    if known and weight_name not in known.get(layer_key, ()):
        there = known.get(layer_key)
        raise KeyError(
            f"found no layer {layer_key!r}; the layers are {', '.join(known)}"
            if there is None
            else f"found no weight {weight_name!r} in {layer_key}; there are "
            f"{', '.join(sorted(there))}"
        )
    return found


def _names(stats: WeightStats) -> set[str]:
    component, name = parts_of(stats.name)
    found = {f"{component}.{name}_{item}" for item in STATISTICS}
    return found | {f"{component}_changes.{name}_{item}" for item in CHANGES}
