"""A decoder layer that runs in the precision that its router picks.

Letters: B sequences of a batch, S positions, D width, P precisions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layerwise.nested_linear import NestedLinear, Precision
from layerwise.router import PrecisionRouter

__all__ = ["BatchPolicy", "MixMode", "Plan", "PrecisionLayer"]

MixMode = Literal["output", "straight_through"]
BatchPolicy = Literal["sample", "max"]


@dataclass(slots=True)
class Plan:
    """How one forward of the whole model chooses.

    Attributes:
        mask_BS: 1 where a token is real.
        way: ``"mixed"``, ``"chosen"`` or ``"fixed"``.
        mode: Of a mixture: its weights are the probabilities, or the choice with their gradient.
        neighbours: 2 for the two precisions around the expected one only; None for all.
        batch_policy: ``"max"`` runs a batch in the highest precision that one of it has chosen.
        fixed: Bits of each layer, where they are fixed.
        bits: What each layer so far ran with, each ``(B,)``.
    """

    mask_BS: Tensor
    way: Literal["mixed", "chosen", "fixed"]
    mode: MixMode = "output"
    neighbours: int | None = None
    batch_policy: BatchPolicy = "sample"
    fixed: Sequence[int] = ()
    bits: list[Tensor] = field(default_factory=list)


class PrecisionLayer(nn.Module):
    """Stands where a decoder layer stood, with that layer and its router in it.

    Attributes:
        layer: The decoder layer of transformers, its linear layers nested.
        router: What chooses.
        parameters_nested: Weights of the layer that are read in the chosen precision.
        plan: Set for the time of a forward.
        recompute: Keep no activations of the layer for the backward but run it again.
    """

    def __init__(self, layer: nn.Module, router: PrecisionRouter, index: int) -> None:
        super().__init__()
        self.layer, self.router, self.index = layer, router, index
        self.precision = Precision()
        linears = [part for part in layer.modules() if isinstance(part, NestedLinear)]
        for linear in linears:
            linear.precision = self.precision
        self.parameters_nested = sum(linear.q.numel() for linear in linears)
        self.groups_nested = sum(linear.scale.numel() for linear in linears)
        self.plan: Plan | None = None
        self.recompute = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Some models ask their layers for an attribute, such as `attention_type`.
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_BSD: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's output, in the precision of the plan.

        Raises:
            RuntimeError: There is no plan: the model was called past its forwards.
        """
        plan = self.plan
        if plan is None:
            raise RuntimeError("call train_forward, infer_forward or fixed_forward of the model")
        if plan.way == "fixed":
            bits = plan.fixed[self.index]
            plan.bits.append(torch.full((len(hidden_BSD),), float(bits), device=hidden_BSD.device))
            return self._run(bits, hidden_BSD, args, kwargs)
        logits_BP, _, ids_B1 = self.router(hidden_BSD, plan.mask_BS)
        offered_P = torch.tensor(self.router.precisions, device=hidden_BSD.device)
        if plan.way == "mixed":
            weights_BP = _mixture(logits_BP.softmax(-1), ids_B1, offered_P, plan)
            plan.bits.append(weights_BP @ offered_P.to(weights_BP.dtype))
            return self._mixed(plan, weights_BP, hidden_BSD, args, kwargs)
        chosen_B = offered_P[ids_B1.squeeze(1)]
        if plan.batch_policy == "max":
            chosen_B = chosen_B.max().expand_as(chosen_B)
        plan.bits.append(chosen_B.float())
        return self._each_in_its_own(chosen_B, hidden_BSD, args, kwargs)

    def _mixed(
        self,
        plan: Plan,
        weights_BP: Tensor,
        hidden_BSD: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The outputs of all precisions, weighted; they sum to 1, so the residual stays whole."""
        total: Tensor | None = None
        output: Any = None
        for position, bits in enumerate(self.router.precisions):
            weight_B11 = weights_BP[:, position].view(-1, 1, 1)
            if plan.neighbours is not None and not bool((weight_B11 != 0).any()):
                continue
            output = self._run(bits, hidden_BSD, args, kwargs)
            # In float32: rounded to bfloat16, weights that sum to 1 no longer do.
            part = _hidden(output).float() * weight_B11
            total = part if total is None else total + part
        assert total is not None
        return _like(output, total.to(hidden_BSD.dtype))

    def _each_in_its_own(
        self, chosen_B: Tensor, hidden_BSD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Every sequence in its own precision, whatever its batch mates chose.

        The whole batch runs in each precision that one of it has chosen. To run only those rows,
        one would have to guess which of the layer's other arguments have a row per sequence.
        """
        distinct = sorted(set(chosen_B.tolist()))
        output = self._run(int(distinct[0]), hidden_BSD, args, kwargs)
        result = _hidden(output)
        for bits in distinct[1:]:
            other = _hidden(self._run(int(bits), hidden_BSD, args, kwargs))
            result = torch.where((chosen_B == bits).view(-1, 1, 1), other, result)
        return _like(output, result)

    def _run(
        self, bits: int, hidden_BSD: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._at, bits, hidden_BSD, *args, use_reentrant=False, **kwargs)
        return self._at(bits, hidden_BSD, *args, **kwargs)

    def _at(self, bits: int, hidden_BSD: Tensor, *args: Any, **kwargs: Any) -> Any:
        # A recomputation comes here with the bits of its forward, and finds no other's.
        with self.precision.at(bits):
            return self.layer(hidden_BSD, *args, **kwargs)


def _mixture(probs_BP: Tensor, ids_B1: Tensor, offered_P: Tensor, plan: Plan) -> Tensor:
    """Weights of the precisions ``(B, P)`` that sum to 1 in every row."""
    if plan.mode == "straight_through":
        chosen_BP = torch.zeros_like(probs_BP).scatter(1, ids_B1, 1.0)
        return chosen_BP + (probs_BP - probs_BP.detach())
    if plan.neighbours is None:
        return probs_BP
    offered_P = offered_P.to(probs_BP.dtype)
    expected_B1 = (probs_BP @ offered_P).unsqueeze(1)
    # The share of a precision falls from 1 at itself to 0 at the next one on either side.
    gaps = offered_P.diff()
    below = torch.cat([gaps[:1].new_ones(1), gaps])
    above = torch.cat([gaps, gaps[:1].new_ones(1)])
    distance_BP = expected_B1 - offered_P
    return (1 - torch.where(distance_BP < 0, -distance_BP / below, distance_BP / above)).clamp(
        min=0
    )


def _hidden(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _like(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
