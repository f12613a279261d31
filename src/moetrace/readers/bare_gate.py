"""Reading a block whose gate returns bare logits: the choice is made by the block around it.

Letters: T tokens (any leading dimensions), E experts, K experts chosen per token.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.readers.choice_rule import ChoiceRule
from moetrace.readers.structure import expert_rows, gate_width, held_experts, takes_a_choice
from moetrace.routing import Routing

__all__ = ["BareGateReader", "ExpertsCallReader"]

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


class ExpertsCallReader:
    """Reads the choice off what the experts' module is called with: what runs, whoever chose it.

    Integer ids ``(..., K)`` beside float weights of the same shape, in any order and by any name.
    It is put before the forward of the experts, which may use its arguments up.

    Args:
        num_experts: E.
        top_k: K where the block states it, else 0. Flat ids ``(T,)`` are read where it is 1 only:
            they may as well be choices that were sorted by expert.
    """

    before_forward = True

    def __init__(self, num_experts: int, *, top_k: int = 0) -> None:
        self.num_experts = num_experts
        self.top_k = top_k

    def matches(self, module: nn.Module, /) -> bool:
        """True for a module that holds as many experts and is called with enough to choose."""
        return held_experts(module) == self.num_experts and takes_a_choice(module)

    def read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, /
    ) -> Routing | None:
        """The ids and weights of this call, or None where there are none, or several."""
        tensors = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
        flat = 1 if self.top_k == 1 else 2
        ids = [item for item in tensors if item.dtype in _INTEGERS and item.dim() >= flat]
        if len(ids) != 1:
            return None
        weights = [
            item for item in tensors if item.dtype.is_floating_point and item.shape == ids[0].shape
        ]
        if len(weights) != 1:
            return None
        if ids[0].dim() == 1:
            return Routing(ids[0].unsqueeze(-1), None, weights[0].unsqueeze(-1))
        if not 0 < ids[0].shape[-1] <= self.num_experts:
            return None
        return Routing(ids[0], None, weights[0])


class BareGateReader:
    """Reads a gate's logits, and the choice by the rule that the block's source shows.

    Args:
        num_experts: E.
        rule: How the block chooses.
        block: The block, where the rule needs something that it holds; not kept alive.
    """

    def __init__(self, num_experts: int, rule: ChoiceRule, block: nn.Module | None = None) -> None:
        self.num_experts = num_experts
        self.rule = rule
        self.block = None if block is None else weakref.ref(block)

    def matches(self, module: nn.Module, /) -> bool:
        """True for layers that end in one output for each expert."""
        return self.num_experts in (gate_width(module), expert_rows(module))

    def read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, /
    ) -> Routing | None:
        """The logits and the experts that the rule takes, or None where it returned no logits.

        Cost: the operations of the rule, in every forward alike.
        """
        logits_TE = _logits(output, self.num_experts)
        if logits_TE is None:
            return None
        block = module if self.block is None else self.block()
        if block is None:
            return None
        ids_TK, scored_TE = self.rule.choose(logits_TE, block)
        return Routing(ids_TK, scored_TE)


def _logits(output: Any, num_experts: int) -> Tensor | None:
    if not isinstance(output, Tensor) or not output.dtype.is_floating_point or output.dim() < 1:
        return None
    return output if output.shape[-1] == num_experts else None
