"""A comparison on the terminal, and as one document for programs."""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

import numpy as np

from moetrace.compare.comparison import FIGURES, Change, Comparison
from moetrace.compare.noise import times_noise
from moetrace.printable import printable, span_text
from moetrace.show.columns import Cell, fitted, print_line, print_table

__all__ = ["CLEAR", "comparison_record", "in_words", "show_comparison"]

CLEAR = 3.0
"""Times its noise from which a difference is called one."""

MOST_CHANGES = 12
STRIP = 40
RAMP = ".:-=+*#%@"
STEPS_OF_RAMP = (1, 2, 3, 5, 8, 12, 20, 40)
"""A character of the ramp stands for up to so many times the noise; the last for more."""

SIDE_BY_SIDE = {"CV": "load_cv", "Vio": "max_vio", "ent": "routing_entropy"}


def show_comparison(
    comparison: Comparison, *, faults: Sequence[str] = (), stream: TextIO | None = None
) -> None:
    """Print runs side by side: the layers of a span, what changed, and when.

    Args:
        comparison: What `compare_runs` found.
        faults: What of the runs could not be read.
        stream: Where to; standard output by default.
    """
    out: TextIO = sys.stdout if stream is None else stream
    for subject in comparison.subjects:
        told = f"{subject.label}  {subject.path} ({subject.run_id}, {subject.model or 'a model'})"
        print_line(printable(told, longest=8192), out)
    for line in _scope(comparison):
        print_line(printable(line), out)
    for other in range(1, len(comparison.subjects)):
        print_line("", out)
        _show_pair(comparison, other, out)
    for fault in faults:
        print_line(f"fault: {printable(fault)}", out)


def _show_pair(comparison: Comparison, other: int, out: TextIO) -> None:
    label = comparison.subjects[other].label
    first, last = comparison.spans[comparison.at].tolist()
    print_line(f"{label} against A, {span_text(first, last)}:", out)
    head = ["layer", "moved", "times"]
    head += [f"{short} {name}" for short in SIDE_BY_SIDE for name in ("A", label)]
    rows = [_row(comparison, other, column) for column in range(len(comparison.layers))]
    print_table(head, rows, out)
    print_line("moved: load on other experts than in A; times: over what chance would show;", out)
    print_line("Vio: MaxVio; ent: routing entropy, nats.", out)
    clear = [item for item in comparison.changes(other) if (item.times or 0.0) >= CLEAR]
    print_line(f"\nwhat differs by {CLEAR:g} times its noise or more:", out)
    for item in clear[:MOST_CHANGES]:
        print_line(f"  {printable(in_words(item))}", out)
    if not clear:
        print_line("  nothing", out)
    elif len(clear) > MOST_CHANGES:
        print_line(f"  and {len(clear) - MOST_CHANGES} more (--json)", out)
    if len(comparison.spans) > 1:
        _show_strips(comparison, other, out)


def _show_strips(comparison: Comparison, other: int, out: TextIO) -> None:
    """When the load moved: a line per layer, a character per span."""
    first, last = comparison.spans[0, 0], comparison.spans[-1, 1]
    print_line(f"\nload moved, over its noise, steps {first} to {last}:", out)
    names = fitted([printable(layer) for layer in comparison.layers], 30)
    for column, name in enumerate(names):
        strip = "".join(map(_mark, _binned(comparison, other, column)))
        print_line(f"  {name:<{max(map(len, names))}}  {strip}", out)
    scale = " ".join(f"{mark} to {most}" for mark, most in zip(RAMP, STEPS_OF_RAMP, strict=False))
    print_line(f"  {scale} {RAMP[-1]} more", out)


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain numbers, strings, lists and dicts, for programs.

    ``against`` has an entry per run beside the first: ``layers`` of the span that is shown with
    every figure of both runs, ``changes`` in the order of `Comparison.changes`, and the whole
    series ``load_change`` and ``load_noise``, a row per span. A difference without any noise has
    ``noise`` 0 and ``times`` null.
    """
    return {
        "phase": comparison.phase,
        "runs": [asdict(subject) for subject in comparison.subjects],
        "spans": comparison.spans.tolist(),
        "shown": comparison.spans[comparison.at].tolist(),
        "layers": list(comparison.layers),
        "left_out": dict(comparison.left_out),
        "against": [_against(comparison, other) for other in range(1, len(comparison.subjects))],
    }


def in_words(change: Change) -> str:
    """A change in one line.

    >>> in_words(Change("mlp", "load_cv", 0.25, 0.75, 0.5, 0.125, 4.0))
    'mlp: load_cv 0.25 -> 0.75 (4.0 times its noise)'
    >>> in_words(Change("mlp", "tokens", 4096.0, 0.0, -4096.0, 0.0, math.inf))
    'mlp: no tokens routed, 4,096 in A'
    """
    if change.figure == "tokens":
        now = f"{change.after:,.0f}" if change.after else "no"
        was = f"{change.before:,.0f}" if change.before else "none"
        return f"{change.layer}: {now} tokens routed, {was} in A"
    times = "" if change.times is None else f" ({_times(change.times)})"
    if change.before is None or change.after is None:
        return f"{change.layer}: {change.difference:.1%} of the load on other experts{times}"
    what = f"{change.before:.4g} -> {change.after:.4g}"
    return f"{change.layer}: {change.figure} {what}{times}"


def _times(times: float) -> str:
    return "it has no noise" if math.isinf(times) else f"{times:.1f} times its noise"


def _scope(comparison: Comparison) -> list[str]:
    count = len(comparison.spans)
    spans = "1 span of steps" if count == 1 else f"{count} spans of steps"
    lines = [f"{spans} of phase {comparison.phase!r} that all runs have"]
    lines += [
        f"{subject.label}: {subject.unmatched} of {subject.windows} windows are of other steps"
        for subject in comparison.subjects
        if subject.unmatched
    ]
    return lines + [f"{layer} is left out: {why}" for layer, why in comparison.left_out.items()]


def _row(comparison: Comparison, other: int, column: int) -> list[Cell]:
    moved = float(comparison.load_change[other, comparison.at, column])
    noise = float(comparison.load_noise[other, comparison.at, column])
    times = times_noise(moved, None if math.isnan(noise) else noise)
    style = "bold red" if times is not None and times >= CLEAR else ""
    cells = [
        Cell(printable(comparison.layers[column])),
        Cell("-" if math.isnan(moved) else f"{moved:.1%}", style),
        Cell("-" if times is None else f"{times:.1f}", style),
    ]
    for name in SIDE_BY_SIDE.values():
        for run in (0, other):
            value = float(comparison.figures[name][run, comparison.at, column])
            cells.append(Cell("-" if math.isnan(value) else f"{value:.3f}"))
    return cells


def _binned(comparison: Comparison, other: int, column: int) -> list[float]:
    """Times its noise, span by span; of several spans in one character the largest."""
    moved = comparison.load_change[other, :, column]
    noise = comparison.load_noise[other, :, column]
    times = np.divide(moved, noise, out=np.full_like(moved, np.nan), where=noise > 0)
    parts = np.array_split(times, min(STRIP, len(times)))
    return [float(np.max(part[~np.isnan(part)], initial=-1.0)) for part in parts]


def _mark(times: float) -> str:
    if times < 0:
        return " "
    return RAMP[sum(times > most for most in STEPS_OF_RAMP)]


def _against(comparison: Comparison, other: int) -> dict[str, Any]:
    return {
        "run": comparison.subjects[other].label,
        "layers": [
            {
                "layer": layer,
                "load_change": _number(comparison.load_change[other, comparison.at, column]),
                "load_noise": _number(comparison.load_noise[other, comparison.at, column]),
                **{
                    name: [
                        _number(comparison.figures[name][run, comparison.at, column])
                        for run in (0, other)
                    ]
                    for name in FIGURES
                },
            }
            for column, layer in enumerate(comparison.layers)
        ],
        "changes": [
            {**asdict(item), "times": _number(item.times)} for item in comparison.changes(other)
        ],
        "load_change": _numbers(comparison.load_change[other]),
        "load_noise": _numbers(comparison.load_noise[other]),
    }


def _numbers(table: Any) -> list[list[float | None]]:
    return [[_number(value) for value in row] for row in table.tolist()]


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
