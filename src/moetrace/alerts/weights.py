# pyright: strict
"""What the router weights of one layer say about each condition, where they are followed."""

import math
from collections.abc import Iterator, Mapping, Sequence

from moetrace.alerts.reading import Reading, above
from moetrace.alerts.rules import AlertRules
from moetrace.weight_stats import WeightStats

__all__ = ["weight_readings"]

_NARROW = ("bfloat16", "float16")


def weight_readings(
    rules: AlertRules, records: Sequence[WeightStats], saved: Mapping[str, WeightStats]
) -> Iterator[Reading]:
    """The readings of one layer's tensors at the end of a window.

    Args:
        rules: The thresholds.
        records: The tensors of the layer.
        saved: What an earlier attempt recorded of them at the step from which this one went on, by
            name; only for the first window of an attempt.
    """
    if rules.nonfinite:
        bad = [record for record in records if record.nonfinite]
        text = f"NaN or infinite router weights in {_named(bad)}"
        yield above("nonfinite_weights", float(len(bad)), 0.0, text, lasting=False)
    if rules.unchanged_weights:
        yield from _unchanged(records)
    if rules.weight_growth_threshold is not None:
        yield from _grown(records, rules.weight_growth_threshold, rules.leave)
    if rules.reset_threshold is not None and saved:
        yield from _reset(records, saved, rules.reset_threshold)


def _unchanged(records: Sequence[WeightStats]) -> Iterator[Reading]:
    learning = [record for record in records if record.trainable and record.steps]
    known = [record for record in learning if record.unchanged_fraction is not None]
    if not known:
        return
    least = min(record.unchanged_fraction or 0.0 for record in known)
    why = "is it in the optimizer, does it get a gradient"
    if all(record.dtype in _NARROW for record in known):
        why = f"updates that {known[0].dtype} cannot show, or {why}"
    text = f"Router weights unchanged in {known[0].steps} steps ({why}?)"
    yield above("unchanged_weights", least, 1.0, text, inclusive=True)


def _grown(records: Sequence[WeightStats], most: float, leave: float) -> Iterator[Reading]:
    growth = {
        record.name: norm / math.sqrt(record.init_sq)
        for record in records
        if record.init_sq and (norm := record.norm) is not None
    }
    if growth:
        name, value = max(growth.items(), key=lambda item: item[1])
        text = f"Router weight {name} grown to {value:.1f} times its norm at attach"
        yield above("weight_growth", value, most, text, even=1.0, leave=leave)


def _reset(
    records: Sequence[WeightStats], saved: Mapping[str, WeightStats], least: float
) -> Iterator[Reading]:
    judged = False
    worst, text = 0.0, ""
    for record in records:
        before = saved.get(record.name)
        now, start = record.norm, record.init_sq
        if before is None or not before.norm or now is None or start is None:
            continue
        judged = True
        began = math.sqrt(start)
        # Whoever loads the checkpoint after attach begins elsewhere and ends where it was saved.
        if abs(now - before.norm) < abs(now - began):
            continue
        difference = abs(began - before.norm) / before.norm
        if difference > worst:
            worst = difference
            text = (
                f"Router weight {record.name} resumed with norm {began:.4g}, "
                f"recorded as {before.norm:.4g}: was it loaded from the checkpoint?"
            )
    if judged:
        yield above("reset_weights", worst, least, text, lasting=False)


def _named(records: Sequence[WeightStats]) -> str:
    return ", ".join(record.name for record in records)
