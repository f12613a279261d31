"""The heatmap of one window as cells: load over the fair share, in colours or in letters.

Letters: L layers, E experts, C columns of the terminal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEAD", "NONE", "Grid", "letter", "shade", "squeezed"]

DEAD = -math.inf
"""Stands for an expert without a token."""

NONE = math.nan
"""Stands where there is no expert, or nothing was routed."""

CLIP = 4.0
STOPS = ((0x58, 0xA6, 0xF0), (0x3F, 0x7C, 0xB4), (0x4A, 0x4E, 0x57), (0xC6, 0x6E, 0x24))
TOP = (0xF5, 0xA2, 0x4E)
GONE = (0xFF, 0xFF, 0xFF)

SCALE = ((-2.0, "_"), (-1.0, "-"), (1.0, "."), (2.0, "+"), (3.0, "*"), (math.inf, "#"))
"""Upper ends of log2(load / fair share), and the letter below each."""

LEGEND = "x none _<1/4 -<1/2 .fair +2x *4x #8x"


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Cells that fit a screen.

    Attributes:
        layers: Positions of the layers shown, in the model's order.
        values: log2(load / fair share) per layer and cell, shape ``(L, C)``; `DEAD` or `NONE`.
        per_cell: Experts that share a cell; of several the one furthest from fair is shown.
    """

    layers: tuple[int, ...]
    values: NDArray[np.float64]
    per_cell: int


def squeezed(
    counts: Sequence[NDArray[np.int64]], *, columns: int, rows: int, urgency: Sequence[float]
) -> Grid:
    """The layers that fit, each squeezed into the columns there are.

    Args:
        counts: Assignments per expert of each layer; negative where a layer has no record.
        columns: C.
        rows: Most layers shown. Of more, those with the highest urgency.
        urgency: How much a layer deserves to be seen; NaN is least.

    >>> grid = squeezed([np.array([4, 1, 1, 2])], columns=2, rows=1, urgency=[0.0])
    >>> grid.values.tolist(), grid.per_cell
    ([[1.0, -1.0]], 2)
    """
    order = np.argsort(-np.nan_to_num(np.asarray(urgency, dtype=np.float64), nan=-math.inf))
    chosen = sorted(int(at) for at in order[:rows])
    most = max((counts[at].size for at in chosen), default=1)
    per_cell = math.ceil(most / max(1, columns))
    table = np.full((len(chosen), math.ceil(most / per_cell)), NONE)
    for row, at in enumerate(chosen):
        load = counts[at]
        total = int(load.clip(min=0).sum())
        if not load.size or load.min() < 0 or not total:
            continue
        with np.errstate(divide="ignore"):
            logs = np.log2(load * (load.size / total))
        for cell in range(math.ceil(load.size / per_cell)):
            part = logs[cell * per_cell : (cell + 1) * per_cell]
            table[row, cell] = part[int(np.abs(part).argmax())]
    return Grid(tuple(chosen), table, per_cell)


def shade(value: float) -> tuple[int, int, int] | None:
    """Red, green and blue of a cell; None where there is nothing.

    Blue below the fair share, grey at it, orange above, white without a token.

    >>> shade(0.0), shade(DEAD)
    ((74, 78, 87), (255, 255, 255))
    """
    if math.isnan(value):
        return None
    if value == DEAD:
        return GONE
    stops = (*STOPS, TOP)
    at = (max(-CLIP, min(CLIP, value)) + CLIP) / (2 * CLIP) * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    red, green, blue = (
        round(a + (b - a) * (at - low)) for a, b in zip(stops[low], stops[low + 1], strict=True)
    )
    return red, green, blue


def letter(value: float) -> str:
    """The same cell where there is no colour.

    >>> "".join(map(letter, [DEAD, -3.0, -1.5, 0.0, 1.0, 2.5, 4.0, NONE]))
    'x_-.+*# '
    """
    if math.isnan(value):
        return " "
    if value == DEAD:
        return "x"
    return next(mark for upper, mark in SCALE if value < upper)
