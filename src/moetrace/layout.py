"""Where each sum of one router stands in its accumulator, and in which fixed point.

```
[ tokens_per_expert (E) | out_of_range (1) | prob_sum (E) | gate_weight_sum (E) | scalars (10) ]
```

Letters: E experts. Every entry is int64. Counts are plain; a sum of reals is kept as
``round(x * 2**bits)``, so that windows add exactly, in any order, over micro-batches, ranks and
attempts. The file knows neither torch nor numpy: the device side and the host side both read it.
"""

from dataclasses import dataclass

__all__ = [
    "FRACTION_BITS",
    "LIMITS",
    "SATURATED",
    "SCALARS",
    "SCORINGS",
    "AccumulatorLayout",
    "decode",
]

FRACTION_BITS = {
    "prob_sum": 30,
    "gate_weight_sum": 30,
    "entropy_sum": 26,
    "confidence_sum": 30,
    "margin_sum": 20,
    "lse_sum": 20,
    "lse_sq_sum": 16,
}
"""Binary digits after the point, per sum of reals; a field that is not here is a plain count.

One token adds at most 1 (probability, confidence), ln E (entropy) or `LIMITS` to a sum, so the
shortest horizon is that of ``gate_weight_sum`` at its limit of 1024: 2**(63-30-10) = 8.4 million
tokens per expert and window at the limit, 8.6e9 at a gate weight of 1.
"""

LIMITS = {"gate_weight_sum": 1024.0, "margin_sum": 1024.0, "lse_sum": 1024.0}
"""The largest magnitude that one token may add; larger values are clamped to it."""

SATURATED = (1 << 62) - 1
"""Where a sum stops: it then stands for itself and all beyond, and never wraps into another number.

Half of what int64 holds, so that there is room for more steps before somebody looks.
"""

SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus", "probabilities")
"""How logits become probabilities: by a function of each, normalised over the experts.

``"probabilities"`` is a router that shows probabilities and no logits. The operator takes the
position in this tuple.
"""

SCALARS = (
    "tokens",
    "calls",
    "masked",
    "dropped",
    "nonfinite",
    "entropy_sum",
    "confidence_sum",
    "margin_sum",
    "lse_sum",
    "lse_sq_sum",
)
"""The scalar fields in their order; ``calls`` counts forwards, the rest tokens or sums."""


@dataclass(frozen=True, slots=True)
class AccumulatorLayout:
    """Offsets of one router's sums.

    Args:
        num_experts: E, at least 1.

    >>> AccumulatorLayout(num_experts=4).width
    23
    """

    num_experts: int

    @property
    def out_of_range(self) -> int:
        """Offset of the overflow bin, right behind the counts."""
        return self.num_experts

    @property
    def prob_sum(self) -> int:
        """Offset of the probability sums."""
        return self.num_experts + 1

    @property
    def gate_weight_sum(self) -> int:
        """Offset of the gate-weight sums."""
        return 2 * self.num_experts + 1

    @property
    def scalars(self) -> int:
        """Offset of the first scalar."""
        return 3 * self.num_experts + 1

    def scalar(self, name: str) -> int:
        """Offset of the scalar called ``name``.

        Raises:
            ValueError: There is no such scalar.
        """
        return self.scalars + SCALARS.index(name)

    @property
    def width(self) -> int:
        """Number of int64 entries."""
        return self.scalars + len(SCALARS)


def decode(field: str, fixed: int) -> float:
    """The real number that a fixed-point sum stands for.

    >>> decode("entropy_sum", 3 << 25)
    1.5
    """
    return fixed / float(1 << FRACTION_BITS[field])
