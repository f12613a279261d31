"""Figures of several runs over the steps, drawn as SVG."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLOURS", "curve", "run_class"]

COLOURS = 6
"""Colours that the page's style has for runs, ``.run0`` and so on (Okabe and Ito's); then again."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 190, 52, 34, 10, 24
TICKS = 4


def curve(
    title: str,
    steps: NDArray[np.int64],
    middle: NDArray[np.float64],
    worst: NDArray[np.float64],
    labels: Sequence[str],
) -> str:
    """One figure over the steps: per run a line for the middle layer, a dashed one for the worst.

    Args:
        title: What it is, with its unit.
        steps: Last step of each span, shape ``(S,)``.
        middle: Median over the layers, shape ``(R, S)``; NaN where undefined.
        worst: The worst layer, shape ``(R, S)``.
        labels: Label of each run.

    Returns:
        An ``svg`` element; empty where nothing is defined.
    """
    known = np.concatenate([middle.ravel(), worst.ravel()])
    known = known[np.isfinite(known)]
    if not known.size:
        return ""
    low, high = min(0.0, float(known.min())), float(known.max())
    ticks = _ticks(low, high if high > low else low + 1.0)
    low, high = ticks[0], ticks[-1]

    def across(step: float) -> float:
        width = max(1, int(steps[-1] - steps[0]))
        return LEFT + (step - float(steps[0])) / width * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    for step, anchor in ((steps[0], "start"), (steps[-1], "end")):
        x = LEFT if anchor == "start" else WIDTH - RIGHT
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">step {step}</text>')
    ends: list[float] = []
    for run, label in enumerate(labels):
        colour = run_class(run)
        for values, dash in ((worst[run], ' stroke-dasharray="4 3"'), (middle[run], "")):
            points = [
                f"{across(step):.1f},{down(value):.1f}"
                for step, value in zip(steps.tolist(), values.tolist(), strict=True)
                if math.isfinite(value)
            ]
            if points:
                line = " ".join(points)
                parts.append(f'<polyline class="{colour}"{dash} points="{line}"/>')
        last = middle[run][np.isfinite(middle[run])]
        if last.size:
            ends.append(_apart(down(float(last[-1])) + 4, ends))
            parts.append(
                f'<text class="end {colour}" x="{WIDTH - RIGHT + 6}" y="{ends[-1]:.1f}">'
                f"{escape(label)}</text>"
            )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def run_class(run: int) -> str:
    """The style of a run's lines and labels, by its position."""
    return f"run{run % COLOURS}"


def _apart(wanted: float, taken: Sequence[float]) -> float:
    """A height near the wanted one where no other label stands."""
    for shift in range(0, HEIGHT, 13):
        for place in (wanted + shift, wanted - shift):
            if all(abs(place - other) >= 12 for other in taken) and TOP <= place <= HEIGHT - BOTTOM:
                return place
    return wanted


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that hold the range.

    >>> _ticks(0.0, 0.83)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if (high - low) / (step * factor) <= TICKS:
            step *= factor
            break
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]
