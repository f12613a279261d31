# pyright: strict
"""The gradients of one group of parameters in one window: squares, and norms formed from them.

Squares of groups add up to the square of the whole; norms do not. So squares are kept, per group
and block, and a norm is formed after everything that should be added has been added.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["GradientStats", "gradient_summary", "norm_of"]


@dataclass(frozen=True, slots=True)
class GradientStats:
    """Gradients of the parameters of one block, group and part.

    Attributes:
        layer: Dotted name of the repeated block (``model.layers.0``); empty for what is in none.
        group: A name in `moetrace.parameter_groups.GROUPS`.
        part: ``"weight"``, or ``"lora_A"`` or ``"lora_B"`` of an adapter.
        measured: When: ``"pre_clip"``, after the last micro-batch, reduced over ranks, unscaled,
            before clipping; ``"at_step"``, as the optimizer got them, clipped where somebody clips.
        numel: Numbers in the gradients that were there.
        sharded: Whether this rank holds a shard: then squares add over ranks. Otherwise every rank
            holds the same reduced gradient, and one of them is taken.
        scale: What a raw norm is divided by so that adapters of different rank and alpha can be
            compared: ``alpha / sqrt(r)`` for LoRA, 1 otherwise.
        steps: Optimizer steps measured, those with non-finite gradients included.
        nonfinite: Steps whose gradients held NaN or infinity; left out of the two sums.
        sum_sq: Squared norm, summed over the finite steps.
        last_sq: Squared norm at the last finite step.
    """

    layer: str
    group: str
    part: str
    measured: str
    numel: int
    sharded: bool
    scale: float
    steps: int
    nonfinite: int
    sum_sq: float
    last_sq: float

    @property
    def key(self) -> tuple[str, ...]:
        """What tells one record of a window from another."""
        return (self.layer, self.group, self.part, self.measured)

    @property
    def norm(self) -> float | None:
        """Root mean square over the window's finite steps of the gradient's norm.

        >>> GradientStats("", "mlp", "weight", "pre_clip", 4, False, 1.0, 2, 0, 50.0, 9.0).norm
        5.0
        """
        return norm_of([self])

    def followed_by(self, later: Self) -> Self:
        """This window and the next one of the same process as one."""
        return replace(
            later,
            steps=self.steps + later.steps,
            nonfinite=self.nonfinite + later.nonfinite,
            sum_sq=self.sum_sq + later.sum_sq,
            last_sq=later.last_sq if later.steps > later.nonfinite else self.last_sq,
        )

    def beside(self, other: Self) -> Self:
        """The same steps of two ranks as one: shards add, replicas count once."""
        if not self.sharded:
            return self
        return replace(
            self,
            numel=self.numel + other.numel,
            nonfinite=max(self.nonfinite, other.nonfinite),
            sum_sq=self.sum_sq + other.sum_sq,
            last_sq=self.last_sq + other.last_sq,
        )


def norm_of(
    records: Iterable[GradientStats], *, last: bool = False, scale_free: bool = False
) -> float | None:
    """Norm of the gradient of several records of one window together.

    ``sqrt(sum of squares)``, as a root mean square over the window's finite steps.

    Args:
        records: Records of one window, each at most once.
        last: Take the last finite step in place of the window.
        scale_free: Divide each raw norm by its `GradientStats.scale` first.

    Returns:
        The norm, or None where no finite step was measured.

    >>> a = GradientStats("", "mlp", "weight", "pre_clip", 4, False, 1.0, 1, 0, 9.0, 9.0)
    >>> b = GradientStats("", "attention", "weight", "pre_clip", 4, False, 1.0, 1, 0, 16.0, 16.0)
    >>> norm_of([a, b])
    5.0
    """
    squares = [
        (record.last_sq if last else record.sum_sq / (record.steps - record.nonfinite))
        / (record.scale**2 if scale_free else 1.0)
        for record in records
        if record.steps > record.nonfinite
    ]
    return math.sqrt(math.fsum(squares)) if squares else None


def gradient_summary(
    records: Sequence[GradientStats], *, per_layer: bool = False
) -> dict[str, float]:
    """The gradients of one window in a few numbers, by the key that a tracker shows them under.

    ``grad_norm/total``, ``grad_norm/{group}`` and ``grad_norm/nonfinite_steps``: at most nine keys.
    They are of what was measured before clipping; where nothing was, of what the optimizer got.

    Args:
        records: Records of one window.
        per_layer: Add ``grad_norm/{layer}/{group}``.

    >>> a = GradientStats("", "mlp", "weight", "pre_clip", 4, False, 1.0, 1, 0, 9.0, 9.0)
    >>> b = GradientStats("", "router", "weight", "pre_clip", 4, False, 1.0, 1, 0, 16.0, 16.0)
    >>> gradient_summary([a, b])["grad_norm/total"]
    5.0
    """
    before = [record for record in records if record.measured == "pre_clip"]
    taken = before or list(records)
    if not taken:
        return {}
    together: dict[str, list[GradientStats]] = {"grad_norm/total": taken}
    for record in taken:
        together.setdefault(f"grad_norm/{record.group}", []).append(record)
        if per_layer and record.layer:
            key = f"grad_norm/{record.layer}/{record.group}"
            together.setdefault(key, []).append(record)
    found = {key: norm for key, some in together.items() if (norm := norm_of(some)) is not None}
    return {**found, "grad_norm/nonfinite_steps": float(max(item.nonfinite for item in taken))}
