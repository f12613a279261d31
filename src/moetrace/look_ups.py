# pyright: strict
"""How often a table of experts was looked up, and where what is not counted went."""

from dataclasses import dataclass

__all__ = ["LookUps"]


@dataclass(frozen=True, slots=True)
class LookUps:
    """How often a table was looked up so far, as far as Python saw it.

    Attributes:
        num_experts: E.
        counted: In training forwards with gradients, which alone are counted.
        outside: In evaluation, or in a phase that the user named.
        without_gradients: In train mode; those of a reentrant checkpoint are counted when they are
            computed again.
    """

    num_experts: int
    counted: int = 0
    outside: int = 0
    without_gradients: int = 0
