"""A curve in one line of text."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["sparkline"]

BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
LETTERS = "_.-:=+*#"


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """The values as ``width`` characters or fewer, one height each; a blank where there is none.

    Of more values than characters, each character is the largest of its share. The lowest height
    stands for 0 where the smallest value is below three quarters of the largest, otherwise for
    the smallest.

    >>> sparkline([0.0, 1.0, 2.0, float("nan"), 7.0], 9, ascii_only=True)
    '_.- #'
    >>> sparkline([1.0, 9.0, 2.0, 3.0], 2, ascii_only=True)
    '#-'
    """
    marks = LETTERS if ascii_only else BLOCKS
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(width, len(values)) or 1)
    tops = [float(part[~np.isnan(part)].max(initial=-math.inf)) for part in parts]
    known = [top for top in tops if math.isfinite(top)]
    if not known:
        return " " * len(tops) if values else ""
    high = max(known)
    low = 0.0 if 0 <= min(known) < 0.75 * high else min(known)
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round((top - low) * scale)] if math.isfinite(top) else " " for top in tops)
