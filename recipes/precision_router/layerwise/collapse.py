"""What the weights of the loss will end in, measured before the training."""

from collections.abc import Mapping
from dataclasses import dataclass

from layerwise.objective import Objective

__all__ = ["Prospect"]


@dataclass(frozen=True, slots=True)
class Prospect:
    """The loss of every uniform choice of bits, and what follows from it.

    Attributes:
        objective: The loss.
        cross_entropy: Nats, by precision, all layers in that precision.
    """

    objective: Objective
    cross_entropy: Mapping[int, float]

    @property
    def gain(self) -> float:
        """Nats that the highest precision saves over the lowest."""
        return (
            self.cross_entropy[self.objective.lowest] - self.cross_entropy[self.objective.highest]
        )

    @property
    def best_uniform(self) -> int:
        """The precision with the lowest loss; the lower one of two equals."""
        return min(
            self.cross_entropy,
            key=lambda bits: (self.objective.total(self.cross_entropy[bits], float(bits)), bits),
        )

    @property
    def largest_saving_per_bit(self) -> float:
        """Nats per bit that some higher precision saves over the lowest, at most.

        >>> objective = Objective(lowest=3, highest=5)
        >>> Prospect(objective, {3: 2.0, 4: 1.75, 5: 1.7}).largest_saving_per_bit
        0.25
        """
        lowest = self.objective.lowest
        base = self.cross_entropy[lowest]
        higher = [bits for bits in self.cross_entropy if bits > lowest]
        return max(((base - self.cross_entropy[b]) / (b - lowest) for b in higher), default=0.0)

    @property
    def collapses(self) -> bool:
        """Whether the lowest precision everywhere has the lowest loss of all uniform choices.

        Always so where the price of one bit is above the `gain` of all bits together.

        >>> objective = Objective(lowest=3, highest=8)
        >>> Prospect(objective, {3: 2.0, 4: 1.6, 8: 1.5}).collapses
        True
        """
        several = len(self.cross_entropy) > 1 and self.objective.kind == "weighted"
        return several and self.best_uniform == self.objective.lowest

    def lines(self) -> list[str]:
        """What is said at the start of a training."""
        objective = self.objective
        low, high = objective.lowest, objective.highest
        told = (
            f"Cross-entropy at {low} bits: {self.cross_entropy[low]:.4f}, at {high} bits: "
            f"{self.cross_entropy[high]:.4f} ({self.gain:.4f} nats apart)"
        )
        if objective.kind == "target":
            return [told, f"Target: {objective.target:g} bits on average"]
        return [
            told,
            f"Break-even: one bit has to save {objective.price_per_bit:.3f} nats to pay",
        ]

    def warning(self) -> str:
        """What to say where it collapses, and what to do."""
        objective = self.objective
        return (
            f"these weights will collapse to {objective.lowest} bits in every layer: one bit costs "
            f"{objective.price_per_bit:.3f} nats, saves at most {self.largest_saving_per_bit:.3f}, "
            f"and all bits together save {self.gain:.3f}; lower --weight_precision or "
            "--precision_scale, or take --objective target --target_precision BITS"
        )
