"""One stored weight that can be read with 2 to 8 bits: the upper bits of one 8-bit number.

Letters: O outputs, I inputs, G groups of inputs that share a scale.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PARENT_BITS", "NestedLinear", "Precision", "nested", "weight_at"]

PARENT_BITS = 8
"""Bits that are stored; every precision is a prefix of them."""


def nested(weight_OI: Tensor, *, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The 8-bit numbers of a weight, and scale and minimum of each group of its inputs.

    Per group: ``s = (max - min) / 255``, ``q = clamp(round((w - min) / s), 0, 255)``. Scale and
    minimum are rounded to float16 first, so that ``q`` fits what is stored.

    Args:
        weight_OI: Any float dtype, shape ``(O, I)``.
        group: Inputs per group; the last group of a row may be shorter.

    Returns:
        ``q`` uint8 ``(O, I)``, ``scale`` and ``low`` float16 ``(O, G)``.

    Source: any-precision-llm, with a uniform grid in place of its tables.

    >>> q, scale, low = nested(torch.tensor([[0.0, 255.0, 100.0]]), group=3)
    >>> q.tolist(), scale.item(), low.item()
    ([[0, 255, 100]], 1.0, 0.0)
    """
    weight_OI = weight_OI.detach().float()
    rows, inputs = weight_OI.shape
    missing = -inputs % group
    padded = functional.pad(weight_OI.unsqueeze(0), (0, missing), mode="replicate").squeeze(0)
    grouped = padded.reshape(rows, -1, group)
    low = grouped.amin(-1).half()
    scale = ((grouped.amax(-1) - low.float()) / (2**PARENT_BITS - 1)).clamp(min=0).half()
    step = scale.float().unsqueeze(-1)
    numbers = (grouped - low.float().unsqueeze(-1)) / torch.where(step > 0, step, 1.0)
    numbers = numbers.round().clamp(0, 2**PARENT_BITS - 1)
    return numbers.to(torch.uint8).reshape(rows, -1)[:, :inputs].contiguous(), scale, low


def weight_at(
    q_OI: Tensor, scale_OG: Tensor, low_OG: Tensor, bits: int, *, group: int, dtype: torch.dtype
) -> Tensor:
    """The weight as its upper ``bits`` say it, shape ``(O, I)``.

    What the lower bits would add is taken to be half of what they can add (mid-rise): with
    ``t = q >> (8 - bits)`` it is ``(t * 2**(8-bits) + (2**(8-bits) - 1) / 2) * s + min``. Leaving
    them at 0 instead makes a weight that is too small everywhere, and 2 bits useless.

    >>> q, scale, low = nested(torch.tensor([[0.0, 255.0]]), group=2)
    >>> weight_at(q, scale, low, 1, group=2, dtype=torch.float32).tolist()
    [[63.5, 191.5]]
    """
    dropped = PARENT_BITS - bits
    numbers = ((q_OI >> dropped) << dropped).float() + (2**dropped - 1) / 2
    inputs = q_OI.shape[1]
    scale_OI = scale_OG.float().repeat_interleave(group, 1)[:, :inputs]
    low_OI = low_OG.float().repeat_interleave(group, 1)[:, :inputs]
    return torch.addcmul(low_OI, numbers, scale_OI).to(dtype)


class Precision:
    """How many bits the weights of one layer are read with at this moment; None outside of it."""

    __slots__ = ("bits",)

    def __init__(self) -> None:
        self.bits: int | None = None

    @contextmanager
    def at(self, bits: int) -> Iterator[None]:
        """Read with so many bits inside the ``with``, and as before after it."""
        before, self.bits = self.bits, bits
        try:
            yield
        finally:
            self.bits = before


class NestedLinear(nn.Module):
    """A frozen linear layer that is stored once and read in any precision.

    Attributes:
        precision: Shared by the linear layers of one decoder layer; they read `Precision.bits`.
        q, scale, low: What is stored, see `nested`.
    """

    q: Tensor
    scale: Tensor
    low: Tensor

    def __init__(self, inputs: int, outputs: int, *, group: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group = inputs, outputs, group
        self.precision = Precision()
        groups = -(-inputs // group)
        self.register_buffer("q", torch.zeros(outputs, inputs, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(outputs, groups, dtype=torch.float16))
        self.register_buffer("low", torch.zeros(outputs, groups, dtype=torch.float16))
        self.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, group: int) -> "NestedLinear":
        """The nested form of a linear layer."""
        made = cls(linear.in_features, linear.out_features, group=group, bias=False)
        made.q, made.scale, made.low = nested(linear.weight, group=group)
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return made

    def weight_at(self, bits: int, dtype: torch.dtype) -> Tensor:
        """The weight in a precision, shape ``(outputs, inputs)``; made anew at each call."""
        return weight_at(self.q, self.scale, self.low, bits, group=self.group, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x @ W.T + b`` in the precision of the moment.

        Raises:
            RuntimeError: No precision was set.
        """
        bits = self.precision.bits
        if bits is None:
            raise RuntimeError(
                "no precision is set; call train_forward, infer_forward or fixed_forward"
            )
        result: Tensor = _FrozenMatmul.apply(x, self, bits)  # type: ignore[no-untyped-call]
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def extra_repr(self) -> str:
        """Sizes and group."""
        return f"{self.in_features}, {self.out_features}, group={self.group}"


class _FrozenMatmul(torch.autograd.Function):
    """A product with a frozen weight that is made again in the backward instead of being kept.

    A mixture of six precisions would otherwise hold six dequantised copies of the whole model from
    its forward to its backward. The precision travels with the call, so that a recomputation reads
    the one that the forward had.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: NestedLinear, bits: int) -> Tensor:
        ctx.linear, ctx.bits = linear, bits
        return functional.linear(x, linear.weight_at(bits, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return gradient @ ctx.linear.weight_at(ctx.bits, gradient.dtype), None, None
