"""Cross-entropy and bits of a way to choose them, over pieces of text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from layerwise.causal_lm import LayerwiseOutput, LayerwiseQuantizeForCausalLM

__all__ = ["Score", "evaluate", "mebibytes_per_token", "score_fixed", "score_router"]

Forward = Callable[[Tensor], LayerwiseOutput]


@dataclass(frozen=True, slots=True)
class Score:
    """What a way to choose bits gives.

    Attributes:
        cross_entropy: Mean over the scored tokens, nats.
        layer_bits: Mean bits of each layer.
        layer_weights: Nested weights of each layer.
        layer_groups: Groups of each layer, with two float16 numbers each.
    """

    cross_entropy: float
    layer_bits: tuple[float, ...]
    layer_weights: tuple[int, ...]
    layer_groups: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """``exp`` of the cross-entropy."""
        return math.exp(self.cross_entropy) if self.cross_entropy < 700 else math.inf

    @property
    def avg_precision(self) -> float:
        """Mean bits over layers: every layer counts the same, as in the loss."""
        return sum(self.layer_bits) / len(self.layer_bits)

    @property
    def avg_precision_by_weights(self) -> float:
        """Mean bits over weights: a layer counts as often as it has weights."""
        pairs = zip(self.layer_bits, self.layer_weights, strict=True)
        return sum(bits * count for bits, count in pairs) / max(sum(self.layer_weights), 1)

    @property
    def mebibytes(self) -> float:
        """What a kernel that reads bit-planes would read per token, see `mebibytes_per_token`."""
        return mebibytes_per_token(self.layer_bits, self.layer_weights, self.layer_groups)


def mebibytes_per_token(
    bits: Sequence[float], weights: Sequence[int], groups: Sequence[int]
) -> float:
    """``(bits * weights / 8 + 4 * groups) / 2**20``: a bound in theory, no speed; MiB.

    What runs here makes the whole weight anew in each forward, and is slower than float16.

    >>> mebibytes_per_token([4.0], [2**21], [0])
    1.0
    """
    read = sum(b * w / 8 + 4 * g for b, w, g in zip(bits, weights, groups, strict=True))
    return read / 2**20


@torch.no_grad()
def evaluate(
    model: LayerwiseQuantizeForCausalLM, ids_NS: Tensor, forward: Forward, *, batch_size: int
) -> Score:
    """The score of a forward over pieces of text, shape ``(N, S)``."""
    device = next(model.parameters()).device
    loss, scored_tokens = 0.0, 0
    bits: list[Tensor] = []
    for rows in ids_NS.split(batch_size):
        ids_BS = rows.to(device)
        output = forward(ids_BS)  # pieces have no padding
        kept = model.pool.scored(torch.ones_like(ids_BS))[:, 1:]
        parts = functional.cross_entropy(
            output.logits[:, :-1][kept].float(), ids_BS[:, 1:][kept], reduction="none"
        )
        loss += parts.double().sum().item()
        scored_tokens += parts.numel()
        bits.append(output.bits_BL.double().cpu())
    return Score(
        loss / max(scored_tokens, 1),
        tuple(torch.cat(bits).mean(0).tolist()),
        tuple(layer.parameters_nested for layer in model.layers),
        tuple(layer.groups_nested for layer in model.layers),
    )


def score_fixed(
    model: LayerwiseQuantizeForCausalLM,
    ids_NS: Tensor,
    bits: int | Sequence[int],
    *,
    batch_size: int,
) -> Score:
    """The score of a fixed choice: one number of bits, or one per layer."""
    return evaluate(
        model,
        ids_NS,
        lambda ids: model.fixed_forward(ids, bits=bits),
        batch_size=batch_size,
    )


def score_router(model: LayerwiseQuantizeForCausalLM, ids_NS: Tensor, *, batch_size: int) -> Score:
    """The score of the routers' choices, in eval mode."""
    before = model.training
    model.eval()
    try:
        return evaluate(model, ids_NS, model.infer_forward, batch_size=batch_size)
    finally:
        model.train(before)
