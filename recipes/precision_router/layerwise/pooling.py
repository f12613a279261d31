"""Which tokens a router looks at, and which tokens may be scored then.

Letters: B sequences of a batch, S positions.
"""

from dataclasses import dataclass

from torch import Tensor

from layerwise.errors import RecipeError

__all__ = ["Pool"]


@dataclass(frozen=True, slots=True)
class Pool:
    """The tokens that a router pools over.

    Attributes:
        prefix: So many first real tokens of each sequence; None for all of them, which sees the
            future: what follows then changes how earlier tokens are predicted.
    """

    prefix: int | None

    @classmethod
    def parse(cls, text: str) -> "Pool":
        """``"prefix:64"`` or ``"mean"``.

        Raises:
            RecipeError: It is neither.

        >>> Pool.parse("prefix:64")
        Pool(prefix=64)
        """
        if text == "mean":
            return cls(None)
        kind, _, length = text.partition(":")
        if kind == "prefix" and length.isascii() and length.isdigit() and int(length) > 0:
            return cls(int(length))
        raise RecipeError(f"found --pool {text!r}; it is 'mean' or 'prefix:K' with K from 1 on")

    def __str__(self) -> str:
        return "mean" if self.prefix is None else f"prefix:{self.prefix}"

    def seen(self, mask_BS: Tensor) -> Tensor:
        """The real tokens that are pooled over, bool, shape ``(B, S)``."""
        real = mask_BS.bool()
        return real if self.prefix is None else real & (real.cumsum(1) <= self.prefix)

    def scored(self, mask_BS: Tensor) -> Tensor:
        """The tokens whose prediction may be scored, bool, shape ``(B, S)``.

        A real token after a real token and, with a prefix, none that had a part in the choice.
        """
        real = mask_BS.bool()
        scored = real.clone()
        scored[:, 0] = False
        scored[:, 1:] &= real[:, :-1]
        return scored if self.prefix is None else scored & (real.cumsum(1) > self.prefix)

    def refuse_short(self, length: int) -> None:
        """Refuse sequences of which no token would be scored.

        Raises:
            RecipeError: They are too short.
        """
        shortest = 2 if self.prefix is None else self.prefix + 1
        if length < shortest:
            raise RecipeError(
                f"found --seq_len {length}, of which nothing can be scored with --pool {self}; "
                f"take --seq_len {shortest} or more, or a shorter prefix"
            )
