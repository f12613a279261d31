"""The heatmaps of the page of a comparison: a row per layer, with names and a legend."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from moetrace.compare import pictures
from moetrace.compare.comparison import Comparison
from moetrace.report.names import short_names, shown

__all__ = ["experts_heat", "spans_heat"]

ROW = 14
MOST_COLUMNS = 1024
LEAST_END = 8.0


def experts_heat(comparison: Comparison, other: int, label: str) -> str:
    """Load per expert of the span that is shown, a run minus the first.

    Args:
        comparison: The comparison.
        other: Position of the run.
        label: Its label.
    """
    loads = [_loads(comparison, run) for run in (0, other)]
    difference = loads[1] - loads[0]
    known = np.abs(difference[np.isfinite(difference)])
    most = _round_up(float(known.max(initial=0.0)))
    picture = pictures.differences(difference, loads[0], loads[1], most=most)
    experts = max(comparison.shown[0][layer].num_experts for layer in comparison.layers)
    together = math.ceil(experts / MOST_COLUMNS)
    added = f", {together} neighbours added up in a column" if together > 1 else ""
    ramp = np.linspace(-most, most, 129)[None, :]
    one = np.ones_like(ramp)
    legend = _legend(
        pictures.differences(ramp, one, one, most=most),
        f"-{most:g}",
        f"+{most:g}",
        [
            (pictures.DIED, f"dead in {label} only"),
            (pictures.REVIVED, "dead in A only"),
            (pictures.BOTH_DEAD, "dead in both"),
        ],
    )
    return (
        "<h3>Load per expert: what differs</h3><p class='soft'>Load over the fair share, "
        f"{label} minus A: blue is less than in A, red is more{added}.</p>{legend}"
        + _heat(comparison, picture, "expert 0", f"expert {experts - 1}", "difference of load")
    )


def spans_heat(comparison: Comparison, other: int) -> str:
    """How much of the load is on other experts than in the first run, span by span."""
    noise = comparison.load_noise[other].T
    times = np.divide(
        comparison.load_change[other].T, noise, out=np.full_like(noise, np.nan), where=noise > 0
    )
    end = _round_up(max(LEAST_END, float(np.max(times[np.isfinite(times)], initial=0.0))))
    ramp = pictures.times(np.expm1(np.linspace(0, np.log1p(end), 129))[None, :], most=end)
    blank = [] if np.isfinite(times).all() else [(pictures.BLANK, "nothing to compare")]
    first, last = int(comparison.spans[0, 0]), int(comparison.spans[-1, 1])
    return (
        "<h3>When the load moved</h3><p class='soft'>Share of the load on other experts than in A, "
        "in multiples of what chance alone would show: 1 is chance.</p>"
        + _legend(ramp, "0", f"{end:g}, colours by the logarithm", blank)
        + _heat(
            comparison,
            pictures.times(_binned(times), most=end),
            f"step {first}",
            f"step {last}",
            "load moved over its noise",
        )
    )


def _heat(
    comparison: Comparison, picture: NDArray[np.uint8], start: str, end: str, what: str
) -> str:
    names = [shown(layer) for layer in comparison.layers]
    rows = "".join(
        f'<li title="{escape(name)}">{escape(short)}</li>'
        for name, short in zip(names, short_names(names), strict=True)
    )
    return (
        f'<figure class="heat"><ul class="names">{rows}</ul>'
        f'<img src="{pictures.image(picture)}" height="{ROW * len(names)}" '
        f'alt="heatmap of {escape(what)}, a row per layer; the table below has the numbers">'
        f'<div class="ends"><span>{escape(start)}</span><span>{escape(end)}</span></div></figure>'
    )


def _legend(
    ramp: NDArray[np.uint8],
    low: str,
    high: str,
    marks: Sequence[tuple[tuple[int, int, int], str]],
) -> str:
    swatches = "".join(
        f'<span><img src="{pictures.image(np.array([[colour]], np.uint8))}" width="14" '
        f'height="12" alt=""> {escape(text)}</span>'
        for colour, text in marks
    )
    scale = f'{escape(low)} <img src="{pictures.image(ramp)}" width="220" height="12" alt="to">'
    return f'<div class="legend">{scale} {escape(high)} {swatches}</div>'


def _loads(comparison: Comparison, run: int) -> NDArray[np.float64]:
    """Load over the fair share, a row per layer; neighbours added up where there are too many."""
    own = comparison.shown[run]
    experts = max(own[layer].num_experts for layer in comparison.layers)
    together = math.ceil(experts / MOST_COLUMNS)
    table = np.full((len(comparison.layers), math.ceil(experts / together)), np.nan)
    for row, layer in enumerate(comparison.layers):
        counts = own[layer].tokens_per_expert
        starts = np.arange(0, counts.size, together)
        sizes = np.diff(np.append(starts, counts.size))
        total = max(1, int(counts.sum()))
        table[row, : starts.size] = np.add.reduceat(counts, starts) * counts.size / sizes / total
    return table


def _binned(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The table with the largest of neighbours where it has too many columns."""
    together = math.ceil(table.shape[1] / MOST_COLUMNS)
    starts = np.arange(0, table.shape[1], together)
    found: NDArray[np.float64] = np.fmax.reduceat(table, starts, axis=1)
    return found


def _round_up(most: float) -> float:
    """The end of a scale: a round number at or above.

    >>> _round_up(0.0), _round_up(0.3), _round_up(7.0)
    (0.25, 0.5, 8.0)
    """
    return 0.25 if most <= 0.25 else 2.0 ** math.ceil(math.log2(most))
