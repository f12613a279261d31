"""The loss: cross-entropy, and what bits cost.

Letters: B sequences of a batch, S positions, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor
from torch.nn import functional

__all__ = ["Objective", "next_token_loss", "precision_loss"]

Number = TypeVar("Number", float, Tensor)


def next_token_loss(logits_BSV: Tensor, ids_BS: Tensor, scored_BS: Tensor) -> Tensor:
    """Mean cross-entropy of the scored tokens, each predicted from the ones before it; nats.

    The logits of one position are held against the *next* token, as in every causal language model.
    Held against the token of the same position the figure falls with fewer bits, since a worse
    model copies its input more.

    Args:
        logits_BSV: As the model gives them.
        ids_BS: The tokens.
        scored_BS: Which of them are scored, see `Pool.scored`.
    """
    kept = scored_BS[:, 1:]
    return functional.cross_entropy(logits_BSV[:, :-1][kept].float(), ids_BS[:, 1:][kept])


def precision_loss(average: Number, lowest: int, highest: int, *, scale: float = 10.0) -> Number:
    """Average bits on a scale from 0 to 10: ``10 * (avg - min) / (max - min)``; no unit.

    0 where there is only one precision to choose.

    >>> precision_loss(3.0, 3, 8), precision_loss(5.5, 3, 8), precision_loss(8.0, 3, 8)
    (0.0, 5.0, 10.0)
    """
    return scale * (average - lowest) / max(highest - lowest, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised.

    ``weighted``: ``weight_ce * CE + weight_precision * precision_loss``. ``target``:
    ``CE + alpha * (average bits - target) ** 2`` (DP-LLM's form), which cannot collapse to the
    lowest precision unless that is the target.

    Attributes:
        kind: Which of the two.
        lowest: Lowest precision.
        highest: Highest precision.
        weight_ce: Of the cross-entropy.
        weight_precision: Of the precision loss.
        scale: The precision loss of the highest precision.
        target: Average bits to reach.
        alpha: Nats per squared bit away from the target.
    """

    kind: Literal["weighted", "target"] = "weighted"
    lowest: int
    highest: int
    weight_ce: float = 0.7
    weight_precision: float = 0.3
    scale: float = 10.0
    target: float = 4.0
    alpha: float = 1.0

    def precision(self, average: Number) -> Number:
        """The part of the loss that is about bits, not yet weighted.

        >>> Objective(lowest=3, highest=8).precision(4.0)
        2.0
        """
        if self.kind == "target":
            return self.alpha * (average - self.target) ** 2
        return precision_loss(average, self.lowest, self.highest, scale=self.scale)

    def total(self, cross_entropy: Number, average: Number) -> Number:
        """The loss.

        >>> Objective(lowest=3, highest=8).total(2.0, 5.5)
        2.9
        """
        if self.kind == "target":
            return cross_entropy + self.precision(average)
        weighted_ce = self.weight_ce * cross_entropy
        return weighted_ce + self.weight_precision * self.precision(average)

    @property
    def price_per_bit(self) -> float:
        """Nats of cross-entropy that one bit more in all layers has to save to pay.

        ``weight_precision * scale / (weight_ce * (highest - lowest))``; infinite without a weight
        on the cross-entropy, 0 for a target, which has no price.

        >>> round(Objective(lowest=3, highest=8).price_per_bit, 3)
        0.857
        """
        if self.kind == "target" or self.highest == self.lowest:
            return 0.0
        if self.weight_ce == 0:
            return float("inf") if self.weight_precision else 0.0
        bits = self.highest - self.lowest
        return self.weight_precision * self.scale / (self.weight_ce * bits)
