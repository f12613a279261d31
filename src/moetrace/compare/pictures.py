# pyright: strict
"""Tables as small pictures that stand inside a page: a cell is a pixel, the browser enlarges it."""

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLANK",
    "BOTH_DEAD",
    "DIED",
    "GREW",
    "LESS",
    "MORE",
    "REVIVED",
    "differences",
    "image",
    "times",
]

LESS, MORE = (33, 102, 172), (178, 24, 43)
"""Ends of the scale of differences: blue for less than in the first run, red for more."""

DIED, REVIVED, BOTH_DEAD = (0, 0, 0), (230, 171, 2), (150, 150, 150)
"""Experts without a token: in the other run only, in the first only, in both."""

GREW = (122, 1, 119)
"""End of the scale of sizes."""

BLANK = (214, 214, 214)
"""Nothing to compare."""

_EVEN = (247, 247, 247)

Reals = NDArray[np.float64]
Picture = NDArray[np.uint8]


def differences(difference: Reals, first: Reals, other: Reals, *, most: float) -> Picture:
    """A picture of what each expert has more or less of than in the first run.

    Args:
        difference: Load over the fair share, other minus first, shape ``(rows, columns)``; NaN
            where there is no expert.
        first: The load in the first run, same shape; where it is 0 the expert is dead there.
        other: The load in the other run.
        most: The difference at either end of the scale.

    Returns:
        Red, green and blue, shape ``(rows, columns, 3)``.

    >>> zero = np.zeros((1, 1))
    >>> differences(zero + 1, zero + 1, zero + 2, most=1.0).tolist()
    [[[178, 24, 43]]]
    """
    known = np.isfinite(difference)
    position = np.clip(np.where(known, difference, 0.0) / most, -1.0, 1.0)
    picture = _between([-1.0, 0.0, 1.0], [LESS, _EVEN, MORE], position)
    picture[(other == 0) & (first > 0)] = DIED
    picture[(first == 0) & (other > 0)] = REVIVED
    picture[(first == 0) & (other == 0)] = BOTH_DEAD
    picture[~known] = BLANK
    return picture


def times(table: Reals, *, most: float) -> Picture:
    """A picture of sizes from 0 to ``most``, dark for much, by ``log(1 + size)``; NaN is grey.

    Args:
        table: Shape ``(rows, columns)``.
        most: The size at the end of the scale.

    Returns:
        Red, green and blue, shape ``(rows, columns, 3)``.
    """
    known = np.isfinite(table)
    sizes = np.clip(np.where(known, table, 0.0), 0.0, most)
    position = np.log1p(sizes) / np.log1p(most)
    picture = _between([0.0, 0.5, 1.0], [_EVEN, (247, 104, 161), GREW], position)
    picture[~known] = BLANK
    return picture


def image(picture: Picture) -> str:
    """A picture as the address of an image that holds it: PNG in base64.

    Args:
        picture: Red, green and blue, shape ``(height, width, 3)``, at least one pixel.
    """
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = picture.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _between(
    stops: Sequence[float], colours: Sequence[tuple[int, int, int]], position: Reals
) -> Picture:
    picture = np.empty((*position.shape, 3), np.uint8)
    for channel in range(3):
        picture[..., channel] = np.interp(
            position, stops, [colour[channel] for colour in colours]
        ).round()
    return picture
