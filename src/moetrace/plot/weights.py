"""Trajectories of router weights over the steps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.plot.choice import Choice
from moetrace.plot.drawing import LINES, QUIET, end_labels, names_of, plain, step_axis

__all__ = ["draw_weights"]

PANELS = (
    ("mean", "mean of the weights"),
    ("norm", "norm of the weights"),
    ("update_ratio", "relative change per optimizer step"),
    ("drift", "drift from the start, relative"),
)
MARKED = 6


def draw_weights(figure: Any, choice: Choice) -> None:
    """Mean, norm, change per step and drift of each router's tensors over the windows.

    Raises:
        ValueError: The run holds no weights, or no such layer.
    """
    series: dict[tuple[str, str], list[list[float]]] = {}
    for window in choice.run.windows(phase=choice.phase):
        for stats in window.weights:
            numbers = [getattr(stats, name) for name, _ in PANELS]
            row = [float(window.last_step), *(np.nan if n is None else n for n in numbers)]
            series.setdefault(stats.key, []).append(row)
    if not series:
        raise ValueError(
            "found no router weights in this run; record them with "
            "attach(model, run, probes=[moetrace.WeightProbe()])"
        )
    layers = set(choice.matching((layer for layer, _ in series), of="weights"))
    lines = {key: np.array(rows) for key, rows in series.items() if key[0] in layers}
    names = _names(list(lines))
    steps = np.unique(np.concatenate([rows[:, 0] for rows in lines.values()]))
    for place, (_, title) in enumerate(PANELS):
        axes = figure.add_subplot(2, 2, place + 1)
        _panel(axes, lines, names, place + 1)
        if PANELS[place][0] == "update_ratio" and axes.get_ylim()[1] > 0:
            axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        axes.set_title(title)
        step_axis(axes, steps)
    figure.suptitle(choice.title("Router weights over the steps"), x=0.01, ha="left")


def _panel(
    axes: Any,
    lines: dict[tuple[str, str], NDArray[np.float64]],
    names: dict[tuple[str, str], str],
    column: int,
) -> None:
    moved = {key: _range(rows[:, column]) for key, rows in lines.items()}
    marked = sorted(lines, key=lambda key: -moved[key])[:MARKED]
    ends = []
    for key, rows in lines.items():
        known = np.isfinite(rows[:, column])
        colour = LINES[marked.index(key)] if key in marked else QUIET
        dots = "o" if known.sum() == 1 else ""
        axes.plot(rows[known, 0], rows[known, column], color=colour, marker=dots)
        if key in marked and known.any():
            ends.append((float(rows[known, column][-1]), names[key], colour))
    axes.margins(y=0.08)
    end_labels(axes, ends)


def _range(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.max() - known.min()) if known.size else -1.0


def _names(keys: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The layer where a router has one tensor, and the tensor too where it has several."""
    layers = list(dict.fromkeys(layer for layer, _ in keys))
    short = dict(zip(layers, names_of(layers), strict=True))
    tensors = {name for _, name in keys}
    if len(tensors) == 1:
        return {key: short[key[0]] for key in keys}
    alone = len(layers) == 1
    return {
        (layer, name): plain(name) if alone else f"{short[layer]} {plain(name)}"
        for layer, name in keys
    }
