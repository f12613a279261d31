"""The router contract of transformers 5: a module that returns logits, weights and expert ids.

The rule reads types and shapes, never class names, and takes the three in any order. It holds for
Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V3, GPT-OSS, GLM4-MoE and every other router of that
contract.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.routing import Routing

__all__ = ["StandardRouterReader"]

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


class StandardRouterReader:
    """Reads a tuple that holds ids ``(..., K)``, weights ``(..., K)`` and logits ``(..., E)``.

    Weights of the shape of the ids are what tells a router from the token indexers of sparse
    attention, which return integer top-k tensors too.
    """

    def matches(self, module: nn.Module, /) -> bool:
        """True for a module of its own; a bare ``nn.Linear`` returns logits and nothing else."""
        return type(module).forward is not nn.Linear.forward

    def read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, /
    ) -> Routing | None:
        """The routing in ``output``, or None when it does not hold the three tensors.

        Cost: comparisons of dtypes and shapes, which the compiler folds away.
        """
        if not isinstance(output, tuple):
            return None
        tensors = [item for item in output if isinstance(item, Tensor) and item.dim() >= 2]
        ids = [item for item in tensors if item.dtype in _INTEGERS]
        if len(ids) != 1:
            return None
        ids_TK = ids[0]
        scores = [
            item
            for item in tensors
            if item.dtype.is_floating_point and item.shape[:-1] == ids_TK.shape[:-1]
        ]
        # Where K equals E logits and weights have one shape; the contract puts the logits first.
        wider = [item for item in scores if item.shape[-1] > ids_TK.shape[-1]]
        weights = [item for item in scores if item.shape[-1] == ids_TK.shape[-1]]
        if not wider:
            wider, weights = weights[:1], weights[1:]
        if not wider or not weights:
            return None
        return Routing(ids_TK, wider[0], weights[-1])
