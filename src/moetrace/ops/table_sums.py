"""The sums of one table: the open step and the open window in one int64 per expert and statistic.

A count holds the draws of the open step in its low 28 binary digits, and those of the open window
in the 35 above them. The end of a step adds the one to the other, a step that is dropped is masked
out, both in place and at the same address, without reading a value back.

A sum of scores has no room for two: each addition goes into the window at once. A step that is
dropped takes the scores of its window along, and they begin anew behind it; ``scored_calls`` says
of how many look-ups they are. A window that closes in the middle of a step leaves them to the next.
"""

import torch
from torch import Tensor

from moetrace.index_layout import STEP_BITS, WINDOW_BITS, IndexLayout

__all__ = ["MOST_IN_STEP", "MOST_IN_WINDOW", "TableSums", "zeros"]

MOST_IN_STEP = (1 << STEP_BITS) - 1
"""Draws of one step that surely fit, even if all are of one expert."""

MOST_IN_WINDOW = (1 << WINDOW_BITS) - 1
"""The same for a window."""

_STEP = (1 << STEP_BITS) - 1
# What stays in a core's cache is added faster; on other devices each part is a kernel to launch.
_HOST_CHUNK, _DEVICE_CHUNK = 1 << 15, 1 << 21


class TableSums:
    """What a table has counted in the open step and the open window.

    Args:
        layout: Where each sum stands.
        device: Where the ids are.

    Attributes:
        sums: What the operators add to, see `moetrace.index_layout`; its address stays.
        kept: Counts of the open window that no longer fit into ``sums``; None in all but windows
            of more than 34 billion draws, or with steps of more than 268 million.
    """

    def __init__(self, layout: IndexLayout, device: torch.device) -> None:
        self.layout = layout
        self.sums = zeros(layout.width, device)
        self.kept: Tensor | None = None
        self._most = 0

    def commit(self, most: int, surplus: Tensor | None = None) -> None:
        """Add the open step to the open window.

        Args:
            most: What the step may have added to one count at most.
            surplus: Counts of those of its look-ups that ``sums`` had no room for.

        Cost: one pass over the counts, with 256 kB beside them on a CPU, at most 16 MB elsewhere.
        """
        counts = self.sums[: self.layout.counts]
        if self._most + most > MOST_IN_WINDOW:
            self._keep(counts >> STEP_BITS)
            counts &= _STEP
            self._most = 0
        self._most += most
        if surplus is not None:
            self._keep(surplus)
        # w << 28 | s becomes (w + s) << 28, since that is s * (2**28 - 1) more.
        for part in counts.split(_HOST_CHUNK if counts.is_cpu else _DEVICE_CHUNK):
            part.add_(part & _STEP, alpha=_STEP)

    def drop(self, *, surplus: bool = False) -> None:
        """Forget the open step, and if it counted anything the scores of its window with it.

        Args:
            surplus: Whether some of its look-ups stand elsewhere.
        """
        counts, scores = self._parts()
        scores *= 1 - self._stepping(surplus=surplus)
        counts &= ~_STEP

    def close(self, into: Tensor, *, surplus: bool = False) -> None:
        """Move the open window out; what the open step has counted stays.

        Args:
            into: Where to, shape ``(layout.width,)``.
            surplus: Whether some look-ups of the open step stand elsewhere.
        """
        counts, scores = self._parts()
        closed_counts, closed_scores = into.split([counts.numel(), scores.numel()])
        torch.bitwise_right_shift(counts, STEP_BITS, out=closed_counts)
        if self.kept is not None:
            closed_counts += self.kept
        stepping = self._stepping(surplus=surplus)
        torch.mul(scores, 1 - stepping, out=closed_scores)
        scores *= stepping
        counts &= _STEP
        self.kept, self._most = None, 0

    def move(self, device: torch.device) -> None:
        """Go on on another device."""
        self.sums = self.sums.to(device)
        self.kept = None if self.kept is None else self.kept.to(device)

    def _parts(self) -> tuple[Tensor, Tensor]:
        return self.sums[: self.layout.counts], self.sums[self.layout.counts :]

    def _stepping(self, *, surplus: bool) -> Tensor:
        """1 where the open step has counted anything, else 0; on the device, so that none waits."""
        calls = self.sums[self.layout.scalar("calls")]
        return (calls & _STEP).clamp(int(surplus), 1)

    def _keep(self, counts: Tensor) -> None:
        self.kept = counts if self.kept is None else self.kept + counts


def zeros(size: int, device: torch.device) -> Tensor:
    """Zeros that a later training step may update, also where inference mode is on."""
    with torch.inference_mode(False):
        return torch.zeros(size, dtype=torch.int64, device=device)
