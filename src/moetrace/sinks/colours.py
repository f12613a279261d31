"""A table of load as a picture: a colour map of our own, in numpy, so that no plotting is needed.

A cell's colour says how an expert stands to its fair share: dark blue for nothing, green at the
fair share, yellow far above it. The scale is fixed, so that pictures of one run can be compared.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["coloured"]

_STOPS = np.linspace(0.0, 1.0, 6)
_COLOURS = np.array(
    [(13, 16, 54), (38, 68, 130), (24, 128, 141), (74, 173, 108), (196, 205, 70), (255, 244, 170)],
    dtype=np.float64,
)
_BLANK = (235, 235, 235)
_MOST_CELLS = 1024
_WIDTH, _HEIGHT, _LARGEST = 512, 256, 32


def coloured(utilisation: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A picture of a table of loads over the fair share.

    Position on the scale is ``u / (1 + u)``: 0 is nothing, the middle is the fair share, the end
    would be infinitely much. NaN is grey. Small tables are drawn with larger cells, tables beyond
    1,024 rows or columns are averaged down.

    Args:
        utilisation: ``u``, shape ``(rows, columns)``.

    Returns:
        Red, green and blue, shape ``(height, width, 3)``.

    >>> coloured(np.array([[1.0]])).shape
    (32, 32, 3)
    """
    table = _at_most(_at_most(np.asarray(utilisation, dtype=np.float64), 0), 1)
    rows, columns = table.shape
    known = np.isfinite(table)
    position = np.where(known, table, 0.0).clip(0.0, None)
    position = position / (1.0 + position)
    picture = np.empty((rows, columns, 3), dtype=np.uint8)
    for channel in range(3):
        picture[..., channel] = np.interp(position, _STOPS, _COLOURS[:, channel]).round()
    picture[~known] = _BLANK
    tall = max(1, min(_LARGEST, _HEIGHT // max(1, rows)))
    wide = max(1, min(_LARGEST, _WIDTH // max(1, columns)))
    return picture.repeat(tall, axis=0).repeat(wide, axis=1)


def _at_most(table: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The table with neighbours averaged until it has at most `_MOST_CELLS` along the axis."""
    group = math.ceil(table.shape[axis] / _MOST_CELLS)
    if group <= 1:
        return table
    starts = np.arange(0, table.shape[axis], group)
    sizes = np.diff(np.append(starts, table.shape[axis]))
    shape = (-1, 1) if axis == 0 else (1, -1)
    sums: NDArray[np.float64] = np.add.reduceat(table, starts, axis=axis)
    return sums / sizes.astype(np.float64).reshape(shape)
