"""Router weights and gradient norms of one window, where probes recorded them."""

from collections.abc import Sequence
from typing import Any, TextIO

from moetrace.gradient_stats import GradientStats, norm_of
from moetrace.parameter_groups import GROUPS
from moetrace.printable import printable
from moetrace.probe_stats import stored_fields
from moetrace.show.columns import Cell, print_line, print_table
from moetrace.snapshot import Snapshot
from moetrace.weight_stats import WeightStats

__all__ = ["gradient_records", "print_gradients", "print_weights", "weight_records"]

WEIGHTS = ("router weight", "norm", "update/step", "drift", "unchanged")
GRADIENTS = ("gradient", "numbers", "norm", "largest", "non-finite")

MEASURED = {
    "pre_clip": "before clipping",
    "at_step": "as the optimizer got it, clipped where somebody clips",
}
"""When a gradient was measured, in words."""


def print_weights(weights: Sequence[WeightStats], stream: TextIO) -> None:
    """Print a row per tensor of a router, and what the columns mean."""
    print_table(WEIGHTS, [_weight(record) for record in weights], stream)
    line = "update/step: change over norm, a step; drift: change over norm since attach;"
    print_line(line, stream)
    print_line("unchanged: share of the numbers that stayed what they were.", stream)
    for record in weights:
        if record.nonfinite:
            text = f"{record.nonfinite:,} numbers are NaN or infinite"
            print_line(f"{_name(record)}: {text}", stream)


def print_gradients(gradients: Sequence[GradientStats], stream: TextIO) -> None:
    """Print a row per group of parameters and the whole, and what the columns mean."""
    taken = _taken(gradients)
    rows = [
        _gradient(group, [record for record in taken if record.group == group])
        for group in dict.fromkeys([*GROUPS, *(record.group for record in taken)])
        if any(record.group == group for record in taken)
    ]
    rows += [_gradient("all together", taken)] if len(rows) > 1 else []
    print_table(GRADIENTS, rows, stream)
    when = MEASURED.get(taken[0].measured, printable(taken[0].measured))
    line = f"norm: root mean square of the window's steps, {when};"
    print_line(line, stream)
    print_line(
        "largest: the block with the largest; non-finite: steps with NaN or infinity.", stream
    )


def weight_records(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The router weights as plain numbers and strings, for programs; norms are formed."""
    return [
        {
            **{name: getattr(record, name) for name in stored_fields(record)},
            **{name: getattr(record, name) for name in ("norm", "update_ratio", "drift")},
        }
        for record in snapshot.weights
    ]


def gradient_records(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The gradients as plain numbers and strings, for programs; norms are formed."""
    return [
        {**{name: getattr(record, name) for name in stored_fields(record)}, "norm": record.norm}
        for record in snapshot.gradients
    ]


def _taken(gradients: Sequence[GradientStats]) -> list[GradientStats]:
    """One measurement of each gradient: before clipping, where there is one."""
    before = [record for record in gradients if record.measured == "pre_clip"]
    return before or list(gradients)


def _weight(record: WeightStats) -> list[Cell]:
    share = record.unchanged_fraction
    return [
        Cell(_name(record)),
        Cell(_number(record.norm), "bold red" if record.nonfinite else ""),
        Cell(_number(record.update_ratio)),
        Cell(_number(record.drift)),
        Cell("-" if share is None else f"{share:.1%}", "yellow" if share == 1.0 else ""),
    ]


def _gradient(name: str, records: Sequence[GradientStats]) -> list[Cell]:
    layers: dict[str, list[GradientStats]] = {}
    for record in records:
        layers.setdefault(record.layer, []).append(record)
    norms = {layer: norm_of(some) or 0.0 for layer, some in layers.items() if layer}
    worst = max(norms, key=lambda layer: norms[layer], default="")
    bad, steps = (max(getattr(item, key) for item in records) for key in ("nonfinite", "steps"))
    return [
        Cell(printable(name)),
        Cell(f"{sum(record.numel for record in records):,}"),
        Cell(_number(norm_of(records))),
        Cell(f"{printable(worst)} {_number(norms[worst])}" if worst else "-"),
        Cell(f"{bad}/{steps}", "bold red" if bad else ""),
    ]


def _name(record: WeightStats) -> str:
    return printable(f"{record.layer}.{record.name}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
