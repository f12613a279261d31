"""Which experts have had a token since the training began, window after window.

The only figure here with a memory: "never used" is about the whole training, "dead" about a window.
It can only fall, and so hides a late collapse; that is what `dead_experts` is for.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EverUsed"]

_MOST_EXPERTS = 1 << 25


class EverUsed:
    """One flag per expert of each layer. Cost: E bytes a layer.

    >>> used = EverUsed()
    >>> used.note("mlp", np.array([3, 0, 1, 0])), used.never("mlp")
    ([[0, 1], [2, 3]], 2)
    >>> used.note("mlp", np.array([0, 5, 9, 0])), used.never("mlp")
    ([[1, 2]], 1)
    """

    def __init__(self) -> None:
        self._layers: dict[str, NDArray[np.bool_]] = {}
        self._recalled: dict[str, list[tuple[int, int]]] = {}

    def never(self, layer: str) -> int:
        """Experts of a layer that have had no token so far; 0 for a layer that was not noted."""
        flags = self._layers.get(layer)
        return 0 if flags is None else int(flags.size - np.count_nonzero(flags))

    def note(self, layer: str, tokens_per_expert: NDArray[np.integer[Any]]) -> list[list[int]]:
        """Take a window's counts.

        Args:
            layer: Name of the site.
            tokens_per_expert: Assignments per expert, shape ``(E,)``.

        Returns:
            The experts that had their first token in it, as spans ``[first, last + 1]``.
        """
        counts = np.asarray(tokens_per_expert)
        flags = self._layers.get(layer)
        if flags is None or flags.size != counts.size:
            flags = self._layers[layer] = np.zeros(counts.size, np.bool_)
            for start, stop in self._recalled.get(layer, ()):
                flags[start:stop] = True
        new = (counts > 0) & ~flags
        flags |= new
        edges = np.flatnonzero(np.diff(new.astype(np.int8), prepend=0, append=0))
        return [[int(start), int(stop)] for start, stop in edges.reshape(-1, 2)]

    def recall(self, layer: str, spans: Iterable[Sequence[int]]) -> None:
        """Take what an earlier process has noted, before the first window of the layer.

        Args:
            layer: Name of the site.
            spans: Spans of experts, as `note` returned them.

        Raises:
            ValueError: They are no spans.
        """
        known = self._recalled.setdefault(layer, [])
        for start, stop in spans:
            if not 0 <= start < stop <= _MOST_EXPERTS:
                raise ValueError(f"found a span of experts from {start!r} to {stop!r}")
            known.append((start, stop))
