"""Pictures of the load: all experts of a window, the experts of a layer over time, and curves."""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics import utilisation
from moetrace.plot.choice import Choice
from moetrace.plot.drawing import (
    DEAD,
    FLOOR,
    LINES,
    QUIET,
    end_labels,
    names_of,
    plain,
    ramp,
    step_axis,
    thinned,
)

__all__ = ["draw_curves", "draw_experts", "draw_heatmap"]

CLIP = 4.0
"""Doublings of the fair share at either end of the scale."""

MOST_COLUMNS = 2048
WORST = 3

CURVES = (
    ("load_cv", "load_cv_floor", "CV of the load (0 is even)", "highest"),
    ("max_vio", "max_vio_floor", "MaxVio: heaviest over fair share, minus 1", "highest"),
    ("routing_entropy", None, "token routing entropy, nats", "lowest"),
    ("load_balancing_loss", None, "load-balancing loss (1 is even)", "highest"),
)
"""Metric, its floor, its title, and which end is bad."""


def draw_heatmap(figure: Any, choice: Choice) -> None:
    """Every expert of every layer of a window: load over the fair share, by its logarithm.

    Raises:
        ValueError: There is no such window, or no such layer in it.
    """
    window = choice.window()
    layers = choice.matching(window.layers, of="routing")
    widest = max(window[layer].num_experts for layer in layers)
    table = np.full((len(layers), widest), np.nan)
    for row, layer in enumerate(layers):
        table[row, : window[layer].num_experts] = utilisation(window[layer].tokens_per_expert)
    axes = figure.add_subplot()
    picture = _log_picture(axes, table)
    thinned(axes.yaxis, names_of(layers), title="layer")
    axes.set_xlabel("expert")
    axes.set_title(choice.title("Load per expert", window))
    _scale(figure, axes, picture)


def draw_experts(figure: Any, choice: Choice) -> None:
    """The experts of one layer over the windows of a phase.

    Raises:
        ValueError: There is no such layer.
    """
    run = choice.run
    layers = choice.matching(run.layers, of="routing")
    layer = choice.worst(layers)
    at = run.layers.index(layer)
    experts = run.experts[at]
    counts = run.counts(phase=choice.phase)[:, at, :experts]
    kept = (counts >= 0).all(axis=1)
    if not kept.any():
        raise ValueError(f"found no window of phase {choice.phase!r} with the layer {layer!r}")
    steps = run.steps(phase=choice.phase)[kept]
    table = np.stack([utilisation(row) for row in counts[kept]], axis=1)
    axes = figure.add_subplot()
    picture = _log_picture(axes, table)
    places = np.unique(np.linspace(0, len(steps) - 1, 6).round().astype(int))
    axes.set_xticks(places, [f"{steps[place, 1]:,}" for place in places])
    axes.set_xlabel("optimizer step (end of the window)")
    axes.set_ylabel("expert")
    axes.set_title(choice.title(f"Load of the experts of {plain(layer)}"))
    _scale(figure, axes, picture)


def draw_curves(figure: Any, choice: Choice) -> None:
    """Four metrics of every layer over the steps; the three worst layers have colour and name.

    Raises:
        ValueError: There is no such layer, or no window.
    """
    run = choice.run
    layers = choice.matching(run.layers, of="routing")
    columns = [run.layers.index(layer) for layer in layers]
    steps = run.steps(phase=choice.phase)
    if not len(steps):
        raise ValueError(f"found no window of phase {choice.phase!r}")
    names = names_of(layers)
    for place, (metric, floor, title, bad) in enumerate(CURVES, 1):
        axes = figure.add_subplot(2, 2, place)
        values = run.metric(metric, phase=choice.phase)[:, columns]
        if floor is not None:
            chance = run.metric(floor, phase=choice.phase)[:, columns]
            known = np.isfinite(chance).any(axis=1)
            axes.plot(
                steps[known, 1],
                np.nanmedian(chance[known], axis=1),
                color=FLOOR,
                linestyle=(0, (4, 3)),
                label="uniform router",
            )
        # After everything that moves the limits: names stand at the ends of their lines.
        _lines(axes, steps[:, 1], values, names, bad=bad)
        if floor is not None:
            axes.legend(loc="best")
        axes.set_title(title)
        step_axis(axes, steps[:, 1])
    figure.suptitle(choice.title("Routing over the steps"), x=0.01, ha="left")


def _lines(
    axes: Any, steps: NDArray[Any], values: NDArray[np.float64], names: list[str], *, bad: str
) -> None:
    if not np.isfinite(values).any():
        axes.text(0.5, 0.5, "withheld", ha="center", transform=axes.transAxes, color=FLOOR)
        axes.set_yticks([])
        return
    last = np.array([column[np.isfinite(column)][-1:].sum() for column in values.T])
    last[~np.isfinite(values).any(axis=0)] = np.nan
    order = np.argsort(np.where(np.isnan(last), -np.inf, last if bad == "highest" else -last))
    marked = list(order[::-1][: min(WORST, len(names))])
    dots = "o" if len(steps) == 1 else ""
    for column in range(len(names)):
        if column not in marked:
            axes.plot(steps, values[:, column], color=QUIET, linewidth=0.7, marker=dots)
    ends = []
    for colour, column in zip(LINES, marked, strict=False):
        axes.plot(steps, values[:, column], color=colour, marker=dots)
        if np.isfinite(last[column]):
            ends.append((float(last[column]), names[column], colour))
    axes.margins(y=0.08)
    end_labels(axes, ends)


def _log_picture(axes: Any, utilised: NDArray[np.float64]) -> Any:
    """Load over the fair share as colours; dead experts and missing ones apart from the scale."""
    colours = importlib.import_module("matplotlib.colors")
    table = _at_most(utilised)
    with np.errstate(divide="ignore"):
        logs = np.log2(table)
    logs = np.where(logs > -np.inf, np.clip(logs, -CLIP, CLIP), -np.inf)
    norm = colours.Normalize(-CLIP, CLIP)
    return axes.imshow(
        np.ma.masked_invalid(np.where(logs == -np.inf, -CLIP - 1, logs)),
        aspect="auto",
        cmap=ramp("RdBu_r", under=DEAD),
        norm=norm,
    )


def _scale(figure: Any, axes: Any, picture: Any) -> None:
    patches = importlib.import_module("matplotlib.patches")
    bar = figure.colorbar(picture, ax=axes, pad=0.015, aspect=28)
    ticks = [-4, -2, 0, 2, 4]
    bar.set_ticks(ticks, labels=["1/16", "1/4", "1", "4", "16"])
    bar.set_label("load over the fair share")
    bar.outline.set_visible(False)
    axes.legend(
        handles=[patches.Patch(facecolor=DEAD, label="dead: no token")],
        loc="upper right",
        bbox_to_anchor=(1.01, -0.055),
        borderaxespad=0.2,
        handlelength=1.0,
    )


def _at_most(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The table with neighbouring columns averaged until a picture can hold them."""
    together = -(-table.shape[1] // MOST_COLUMNS)
    if together < 2:
        return table
    starts = np.arange(0, table.shape[1], together)
    sizes = np.diff(np.append(starts, table.shape[1]))
    sums: NDArray[np.float64] = np.add.reduceat(table, starts, axis=1)
    return sums / sizes.astype(np.float64)
