"""Integers and reals as text that a browser turns back into the same numbers.

Neighbouring windows resemble each other, so what is packed is the difference along time. A signed
difference becomes an unsigned number (0, -1, 1, -2 ... to 0, 1, 2, 3 ...), its bytes are laid out
plane by plane (all lowest bytes first), gzipped, and written as base64. The other half of this file
is ``decode.js``.
"""

import base64
import gzip
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.errors import RunNotReadable

__all__ = ["pack_integers", "pack_reals"]

LEVEL = 6
"""Level of gzip: 9 took several times as long for less than 1 % on counts."""


def pack_integers(values: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """A table of integers, exact.

    Args:
        values: Shape ``(windows, columns)``, magnitudes below 2**52, so that the browser's doubles
            hold each of them and each difference.

    Returns:
        ``rows``, ``columns``, ``width`` (bytes per number) and ``data``.

    Raises:
        ValueError: The array is no table.
        RunNotReadable: A number is too large for a double.

    >>> pack_integers(np.array([[3, 4], [3, 5]]))["width"]
    1
    """
    table = np.asarray(values, dtype=np.int64)
    if table.ndim != 2:
        raise ValueError(f"found shape {table.shape}, expected (windows, columns)")
    largest = max(int(table.max(initial=0)), -int(table.min(initial=0)))
    if largest >= 1 << 52:
        raise RunNotReadable(
            f"found the number {largest}, a browser reads integers below 2**52; read this run with "
            "open_run, it cannot be drawn"
        )
    steps = np.diff(table, axis=0, prepend=0)
    unsigned = ((steps << 1) ^ (steps >> 63)).astype("<u8").reshape(-1)
    width = max(1, (int(unsigned.max(initial=0)).bit_length() + 7) // 8)
    planes = unsigned.view(np.uint8).reshape(-1, 8)[:, :width].T
    # mtime 0: the same run gives the same page, byte for byte
    squeezed = gzip.compress(np.ascontiguousarray(planes).tobytes(), compresslevel=LEVEL, mtime=0)
    return {
        "rows": table.shape[0],
        "columns": table.shape[1],
        "width": width,
        "data": base64.b64encode(squeezed).decode("ascii"),
    }


def pack_reals(values: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """A table of reals, rounded to float32; NaN stays NaN.

    The bit patterns are packed as integers: close numbers have close patterns.

    >>> pack_reals(np.array([[0.5], [0.5]]))["rows"]
    2
    """
    with np.errstate(over="ignore"):
        single = np.asarray(values, dtype=np.float64).astype("<f4")
    single[np.isnan(single)] = np.float32(np.nan)
    return pack_integers(single.view("<i4").astype(np.int64))
