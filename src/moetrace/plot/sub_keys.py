"""The sub-key map of a table that product keys choose from: which halves of a key are drawn."""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.index_stats import IndexStats
from moetrace.plot.choice import Choice
from moetrace.plot.drawing import DEAD, FLOOR, LINES, plain, ramp
from moetrace.printable import span_text

__all__ = ["draw_sub_keys"]

LARGEST = 1024
HALVES = ("row_draws", "column_draws")
TITLES = {"row_draws": "first half of the key", "column_draws": "second half of the key"}


def draw_sub_keys(figure: Any, choice: Choice) -> None:
    """Draws of each sub-key of both halves, and the map of a window whose counts are on the disk.

    Of the table with the most dead sub-keys, where several are chosen.

    Raises:
        ValueError: There is no such window, or no table with product keys in it.
    """
    window = choice.window()
    tables = [stats for stats in window.indices if stats.columns and stats.draws]
    if not tables:
        raise ValueError(
            "found no table with product keys in this window; moetrace.IndexProbe records those of "
            "PEER layers, from 4,096 experts on by itself"
        )
    layers = set(choice.matching((stats.layer for stats in tables), of="product keys"))
    stats = max((item for item in tables if item.layer in layers), key=_dead)
    kept = _kept_draws(choice, stats.layer, window.last_step)
    heights = [1.0, 1.0] if kept is None else [1.0, 1.0, 2.4]
    places = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for place, half in enumerate(HALVES):
        _marginal(figure.add_subplot(places[place]), stats, half)
    if kept is not None and kept[1].size == stats.num_experts:
        _map(figure, figure.add_subplot(places[2]), *kept, stats.columns)
    figure.suptitle(choice.title(f"Sub-keys of {plain(stats.layer)}", window), x=0.01, ha="left")


def _dead(stats: IndexStats) -> int:
    return sum(getattr(stats, half).count(0) for half in HALVES)


def _kept_draws(choice: Choice, layer: str, last: int) -> tuple[str, NDArray[np.int64]] | None:
    """Steps and counts per expert of the last window up to a step that keeps them."""
    found: tuple[str, NDArray[np.int64]] | None = None
    for (first, end), draws, _ in choice.run.draws(layer, phase=choice.phase):
        if end <= last:
            found = span_text(first, end), draws
    return found


def _marginal(axes: Any, stats: IndexStats, half: str) -> None:
    draws = np.array(getattr(stats, half), np.float64)
    mean = draws.mean()
    edges = np.arange(draws.size + 1) - 0.5
    axes.stairs(draws / mean, edges, fill=True, color=LINES[0])
    axes.axhline(1.0, color=FLOOR, linestyle=(0, (4, 3)), linewidth=1.0)
    dead = np.flatnonzero(draws == 0)
    if dead.size:  # an empty line that is not clipped would count as drawn at the figure's corner
        axes.plot(dead, np.zeros(dead.size), "|", color=DEAD, markersize=5, clip_on=False)
    axes.set_xlim(-0.5, draws.size - 0.5)
    axes.set_ylim(0, None)
    axes.set_ylabel("over fair share")
    axes.set_xlabel("sub-key")
    axes.set_title(f"{TITLES[half]}: {draws.size:,} sub-keys, {dead.size:,} dead (black ticks)")


def _map(figure: Any, axes: Any, steps: str, counts: NDArray[np.int64], columns: int) -> None:
    grid = _at_most(counts.reshape(-1, columns).astype(np.float64))
    colours = importlib.import_module("matplotlib.colors")
    most = max(1.0, float(grid.max()))
    norm = colours.Normalize(0.0, float(np.log1p(most)))
    logs = np.where(grid > 0, np.log1p(grid), -1.0)
    picture = axes.imshow(
        logs, cmap=ramp("cividis", under="white"), norm=norm, aspect="auto", origin="upper"
    )
    axes.set_xlabel("second half of the key")
    axes.set_ylabel("first half of the key")
    axes.set_title(f"draws per expert, {steps} (white: none)")
    bar = figure.colorbar(picture, ax=axes, pad=0.015, aspect=24)
    ticks = [value for value in (1, 3, 10, 30, 100, 1000, 10_000, 100_000) if value <= most]
    bar.set_ticks(np.log1p(ticks).tolist(), labels=[f"{value:,}" for value in ticks])
    bar.set_label("draws, logarithmic")
    bar.outline.set_visible(False)


def _at_most(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The grid with neighbours added up until it has at most 1,024 cells a side."""
    for axis in (0, 1):
        together = -(-grid.shape[axis] // LARGEST)
        if together > 1:
            grid = np.add.reduceat(grid, np.arange(0, grid.shape[axis], together), axis=axis)
    return grid
