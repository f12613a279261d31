"""Where each sum of one table of experts stands in its accumulator, and in which fixed point.

```
[ draws per expert (E) | out_of_range (1) | scalars (6) | score_sum (E) | score overflow (1) ]
|<---------------- counts: as far as ``masked`` ------->|<-- the rest: sums of scores ------->|
```

Letters: E experts. The last two parts are there where scores are seen. Every entry is int64, 8
bytes per expert and statistic, and there is one accumulator for the open step and the open window
together: a count holds the step in its low `STEP_BITS` and the window above them, a sum of scores
holds both in one. The file knows neither torch nor numpy.
"""

from dataclasses import dataclass

__all__ = [
    "INDEX_SCALARS",
    "MOST_SCORE",
    "SCORE_BITS",
    "SCORE_SQ_BITS",
    "STEP_BITS",
    "WINDOW_BITS",
    "IndexLayout",
]

STEP_BITS = 28
"""Low binary digits of a count, for the open step: 268 million draws of one expert."""

WINDOW_BITS = 35
"""Binary digits above those, for the open window: 34 billion draws of one expert."""

SCORE_BITS = 30
"""Binary digits after the point of a sum of scores: 8.6e9 draws of score 1 until it is full."""

SCORE_SQ_BITS = 24
"""The same for the sum of squared scores over all experts; a score above 32 counts as 32 there."""

MOST_SCORE = 1024.0
"""The largest score that one draw may add; larger ones are clamped to it, negative ones to 0."""

INDEX_SCALARS = ("tokens", "calls", "masked", "nonfinite", "score_sq_sum", "scored_calls")
"""The scalar fields in their order; ``calls`` counts forwards, ``nonfinite`` scores, and
``scored_calls`` the forwards whose scores are in the sums.
"""


@dataclass(frozen=True, slots=True)
class IndexLayout:
    """Offsets of one table's sums.

    Args:
        num_experts: E, at least 1.
        scored: Whether scores are summed too.

    >>> IndexLayout(4, scored=False).width, IndexLayout(4, scored=True).width
    (11, 16)
    """

    num_experts: int
    scored: bool

    @property
    def scalars(self) -> int:
        """Offset of the first scalar, right behind the draws and their overflow bin."""
        return self.num_experts + 1

    @property
    def counts(self) -> int:
        """How many entries are counts; the sums that belong to scores stand behind them."""
        return self.scalar("nonfinite")

    def scalar(self, name: str) -> int:
        """Offset of the scalar called ``name``.

        Raises:
            ValueError: There is no such scalar.
        """
        return self.scalars + INDEX_SCALARS.index(name)

    @property
    def score_sum(self) -> int:
        """Offset of the score sums, behind which stands their overflow bin."""
        return self.scalars + len(INDEX_SCALARS)

    @property
    def width(self) -> int:
        """Number of int64 entries."""
        return self.score_sum + (self.num_experts + 1 if self.scored else 0)
