"""How a table of product keys uses its two halves: rows and columns of a grid of experts.

Expert e stands in row ``e // columns`` and column ``e % columns``, which are its two sub-keys.
Letters as in `moetrace.metrics.index_usage`; the unevenness of the whole is exactly that of the
rows, plus that of the columns, plus the mutual information of the two.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics.index_usage import unevenness

__all__ = ["dead_sub_keys", "mutual_information", "sub_key_counts"]


def sub_key_counts(
    counts: NDArray[np.integer[Any]], *, columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws per row and per column of the grid.

    Args:
        counts: Draws per expert, shape ``(E,)``.
        columns: Sub-keys of the second half; divides E.

    Returns:
        Draws per row, shape ``(E / columns,)``, and per column, shape ``(columns,)``.

    Raises:
        ValueError: The experts are no grid of so many columns.

    >>> rows, columns = sub_key_counts(np.array([3, 1, 0, 0]), columns=2)
    >>> rows.tolist(), columns.tolist()
    ([4, 0], [3, 1])
    """
    if columns < 1 or counts.size % columns:
        raise ValueError(f"found {counts.size} experts, which are no grid of {columns} columns")
    grid = counts.reshape(-1, columns)
    return grid.sum(1).astype(np.int64), grid.sum(0).astype(np.int64)


def dead_sub_keys(sub_keys: NDArray[np.integer[Any]]) -> float:
    """Rows or columns of which no expert was drawn, ``#{r: c_r = 0}``. Sub-keys.

    Args:
        sub_keys: Draws per row, or per column.

    Returns:
        A whole number. NaN where nothing was drawn.

    Source: the definition.

    >>> dead_sub_keys(np.array([4, 0, 1]))
    1.0
    """
    used = int(np.count_nonzero(sub_keys))
    return float(sub_keys.size - used) if used else math.nan


def mutual_information(counts: NDArray[np.integer[Any]], *, columns: int) -> float:
    """What a row says about the column, ``KL(joint) - KL(rows) - KL(columns)``, nats.

    0 where the halves of a key are drawn independently of each other.

    Args:
        counts: Draws per expert, shape ``(E,)``.
        columns: Sub-keys of the second half.

    Returns:
        Nats in ``[0, ln(min(rows, columns))]``. NaN where nothing was drawn.

    Source: the chain rule of the Kullback-Leibler divergence.

    >>> round(mutual_information(np.array([1, 0, 0, 1]), columns=2), 4)
    0.6931
    """
    rows, cols = sub_key_counts(counts, columns=columns)
    return float(np.maximum(0.0, unevenness(counts) - unevenness(rows) - unevenness(cols)))
