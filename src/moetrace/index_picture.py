"""A table of a million experts as a picture, one pixel per expert where there is room for it.

Rows are the first sub-keys and columns the second. A picture of numbers and no plot: it costs an
array, whoever shows it.
"""

import importlib
import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_PIXELS", "save_usage_picture", "usage_picture"]

MOST_PIXELS = 1024
"""Rows and columns of a picture at most; beyond it neighbours share a pixel, with their mean."""


def usage_picture(
    counts: NDArray[np.integer[Any]], *, columns: int = 0, most: int = MOST_PIXELS
) -> NDArray[np.uint8]:
    """Draws per expert as grey values: 0 for none at all, brighter on a scale of ``ln(1 + c)``.

    The brightest pixel is 255. An expert that was drawn at all is at least 1, so that what is black
    was never drawn; a pixel of several experts is black where none of them was.

    Args:
        counts: Draws per expert, shape ``(E,)``.
        columns: Sub-keys of the second half; 0 for the nearest to a square, filled up with black.
        most: Rows and columns at most.

    Returns:
        Grey values, shape ``(rows, columns)``; 1024 x 1024 for a million experts.

    Raises:
        ValueError: The experts are no grid of so many columns, or ``most`` is below 1.

    >>> usage_picture(np.array([0, 1, 3, 0]), columns=2).tolist()
    [[0, 128], [255, 0]]
    """
    if most < 1:
        raise ValueError(f"found most={most}; a picture has a pixel or more")
    found = np.asarray(counts)
    if found.ndim != 1 or not found.size:
        raise ValueError(f"counts: found shape {found.shape}, expected (E,)")
    if columns < 1:
        columns = math.isqrt(found.size - 1) + 1
        found = np.concatenate([found, np.zeros(-found.size % columns, found.dtype)])
    if found.size % columns:
        raise ValueError(f"found {found.size} experts, which are no grid of {columns} columns")
    table = found.reshape(-1, columns).astype(np.float64)
    for axis in (0, 1):
        table = _averaged(table, axis, most)
    scaled = np.log1p(table)
    top = float(scaled.max())
    if not top:
        return np.zeros(scaled.shape, np.uint8)
    return np.maximum(np.rint(scaled * (255 / top)), table > 0).astype(np.uint8)


def save_usage_picture(
    path: str | os.PathLike[str],
    counts: NDArray[np.integer[Any]],
    *,
    columns: int = 0,
    most: int = MOST_PIXELS,
    colours: str = "inferno",
) -> None:
    """Write `usage_picture` as a PNG of exactly as many pixels.

    Args:
        path: The file; one that is there is replaced.
        counts: Draws per expert.
        columns: As in `usage_picture`.
        most: As in `usage_picture`.
        colours: Name of a colour map of matplotlib.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    try:
        image = importlib.import_module("matplotlib.image")
    except ImportError as error:
        raise ImportError(
            "writing a picture needs matplotlib: pip install 'moetrace[plot]'"
        ) from error
    picture = usage_picture(counts, columns=columns, most=most)
    image.imsave(os.fspath(path), picture, cmap=colours, vmin=0, vmax=255, format="png")


def _averaged(table: NDArray[np.float64], axis: int, most: int) -> NDArray[np.float64]:
    group = math.ceil(table.shape[axis] / most)
    if group == 1:
        return table
    starts = np.arange(0, table.shape[axis], group)
    sizes = np.diff(np.append(starts, table.shape[axis]))
    shape = (-1, 1) if axis == 0 else (1, -1)
    means: NDArray[np.float64] = np.add.reduceat(table, starts, axis=axis) / sizes.reshape(shape)
    return means
