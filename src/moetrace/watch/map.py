"""The heatmap as lines of text: a row a layer, or two in one line as upper and lower halves."""

import math

import numpy as np
from rich.style import Style
from rich.text import Text

from moetrace.report.names import short_names, shown
from moetrace.report.windows import Windows
from moetrace.watch.cells import LEGEND, Grid, letter, shade, squeezed

__all__ = ["map_lines"]


def map_lines(
    windows: Windows, width: int, height: int, *, colour: bool, ascii_only: bool
) -> list[Text]:
    """A caption, then a line a layer; two layers a line where they would not fit otherwise.

    Args:
        windows: The windows of a phase; the last one is drawn.
        width: Columns.
        height: Most lines, the caption included.
        colour: Whether cells are told apart by colour; otherwise by letters.
        ascii_only: Whether the terminal can only show ASCII.
    """
    halves = colour and not ascii_only and len(windows.layers) > height - 1
    rows = (height - 1) * (2 if halves else 1)
    names = short_names([shown(layer.name) for layer in windows.layers])
    label = min(max(map(len, names), default=1), max(4, width // 4))
    if halves:
        label = min(2 * label + 1, max(5, width // 3))
    counts = [windows.counts(at)[-1] for at in range(len(windows.layers))]
    grid = squeezed(counts, columns=max(1, width - label - 1), rows=rows, urgency=_urgency(windows))
    lines = [_caption(windows, grid, width, colour=colour)]
    step = 2 if halves else 1
    # few experts are drawn wide: a cell of one column is hard to see
    wide = max(1, min(4, (width - label - 1) // max(1, grid.values.shape[1])))
    for at in range(0, len(grid.layers), step):
        pair = range(at, min(at + step, len(grid.layers)))
        name = ",".join(names[grid.layers[row]] for row in pair)
        line = Text(f"{name[-label:]:>{label}} ")
        if np.isnan(grid.values[pair.start : pair.stop]).all():
            line.append("no token routed", "bold red")
        elif halves:
            _append_halves(line, grid, at, wide)
        else:
            _append_cells(line, grid, at, wide, colour=colour)
        lines.append(line)
    return lines


def _urgency(windows: Windows) -> list[float]:
    excess = windows.metrics["max_vio_excess"][-1]
    dead = np.nan_to_num(windows.metrics["dead_experts"][-1], nan=0.0)
    silent = (windows.tokens[-1] <= 0) & (windows.tokens > 0).any(axis=0)
    return [
        math.inf if silent[at] else float(np.nan_to_num(excess[at], nan=-1.0)) + float(dead[at] > 0)
        for at in range(len(windows.layers))
    ]


def _caption(windows: Windows, grid: Grid, width: int, *, colour: bool) -> Text:
    """What the cells mean and what of the run they leave out; shorter where it would not fit."""
    scale = _swatches() if colour else Text(LEGEND, "dim")
    long, short = ["load over fair share"], []
    if len(grid.layers) < len(windows.layers):
        short.append(f"worst {len(grid.layers)} of {len(windows.layers)} layers")
        long.append(f"the {short[-1]}")
    if grid.per_cell > 1:
        short.append(f"{grid.per_cell} experts a cell")
        long.append(f"of {short[-1]} the furthest from fair")
    text = ", ".join(long)
    if short and scale.cell_len + 2 + len(text) > width:
        text = ", ".join(short)
    parts = (f"{text}: ", scale) if colour else (scale, f": {text}")
    return Text.assemble(*parts, style="dim")


def _swatches() -> Text:
    line = Text()
    for value, name in ((-math.inf, "none"), (-3.0, "less"), (0.0, "fair"), (3.0, "more")):
        line.append("  ", Style(bgcolor=_rgb(value)))
        line.append(f" {name} ")
    return line


def _append_cells(line: Text, grid: Grid, row: int, wide: int, *, colour: bool) -> None:
    for value in grid.values[row].tolist():
        if not colour:
            line.append(letter(value) * wide)
        elif math.isnan(value):
            line.append(" " * wide)
        else:
            line.append(" " * wide, Style(bgcolor=_rgb(value)))


def _append_halves(line: Text, grid: Grid, row: int, wide: int) -> None:
    """Two layers in one line: the upper half of each cell is the first."""
    below = grid.values[row + 1].tolist() if row + 1 < len(grid.layers) else None
    for at, value in enumerate(grid.values[row].tolist()):
        other = math.nan if below is None else below[at]
        if math.isnan(value) and math.isnan(other):
            line.append(" " * wide)
        elif math.isnan(value):
            line.append("\u2584" * wide, Style(color=_rgb(other)))
        else:
            line.append("\u2580" * wide, Style(color=_rgb(value), bgcolor=_rgb(other)))


def _rgb(value: float) -> str | None:
    colour = shade(value)
    return None if colour is None else f"#{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}"
