"""Load of the expert-parallel ranks, for a given placement of the experts on them.

Letters: E experts, R EP ranks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics.balance import load_imbalance

__all__ = ["rank_imbalance", "rank_load"]

Counts = NDArray[np.integer[Any]]


def rank_load(
    tokens_per_expert: Counts, *, placement: Sequence[int], ranks: int | None = None
) -> NDArray[np.int64]:
    """Assignments that each EP rank has to compute.

    The counts must be those of every token, from all ranks: an EP rank computes for the whole
    expert-parallel group.

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.
        placement: The EP rank that holds each expert, ``(E,)`` numbers from 0.
        ranks: R, where the last ranks hold no expert; else the largest rank named, plus 1.

    Returns:
        Assignments per rank, int64, shape ``(R,)``.

    Raises:
        ValueError: The placement does not name one rank in ``[0, R)`` per expert.

    Source: Megatron-LM pull request 4110 (overload factor).

    >>> rank_load(np.array([4, 2, 1, 1]), placement=[0, 0, 1, 1]).tolist()
    [6, 2]
    """
    counts = np.asarray(tokens_per_expert)
    holder = np.asarray(placement, dtype=np.int64)
    if holder.shape != counts.shape:
        raise ValueError(f"found {holder.size} places for {counts.size} experts; give one each")
    world = int(holder.max(initial=-1)) + 1 if ranks is None else ranks
    if holder.size and not 0 <= int(holder.min()) <= int(holder.max()) < world:
        raise ValueError(
            f"found EP ranks {int(holder.min())} to {int(holder.max())}; they lie in [0, {world})"
        )
    load = np.zeros(world, np.int64)
    np.add.at(load, holder, counts)
    return load


def rank_imbalance(
    tokens_per_expert: Counts, *, placement: Sequence[int], ranks: int | None = None
) -> float:
    """Heaviest EP rank's load over the mean load of the ranks; 1 is even. Dimensionless.

    Every rank waits for the heaviest one, so the expert layers of this window took about this
    many times longer than evenly loaded ones. (Over a window; single micro-batches are worse.)

    Args:
        tokens_per_expert: Assignments per expert, shape ``(E,)``.
        placement: The EP rank that holds each expert, ``(E,)`` numbers from 0.
        ranks: R, where the last ranks hold no expert; else the largest rank named, plus 1.

    Returns:
        A ratio in ``[1, R]``. NaN where nothing was routed.

    Raises:
        ValueError: The placement does not name one rank in ``[0, R)`` per expert.

    Source: Megatron-LM pull request 4110 (overload factor); its inverse is the balancedness of
    vLLM and SGLang.

    >>> rank_imbalance(np.array([4, 2, 1, 1]), placement=[0, 0, 1, 1])
    1.5
    """
    return load_imbalance(rank_load(tokens_per_expert, placement=placement, ranks=ranks))
