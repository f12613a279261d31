"""Reading what a router module returns, by rules on types and shapes.

Letters: T tokens (any leading dimensions), E experts, K experts chosen per token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.readers.capacity import before_limit, read_routes, read_slots
from moetrace.routing import Routing

__all__ = ["RouterReader"]

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


class RouterReader:
    """Reads the choice of experts and the logits off a router's output; four rules, in order.

    - **ids**: an integer tensor ``(..., K)`` beside float weights of the same shape, and scores
      ``(..., E)`` if it returns any. The router contract of transformers 5, in any order. The
      weights are what tells a router from the token indexers of sparse attention, which return
      integer top-k tensors too.
    - **slots** and **routes** of a router with a capacity limit: `moetrace.readers.capacity`.
    - **map**: a tensor ``(..., E)`` that is 0 where a token does not go (one-hot, bool, or combine
      weights), beside logits.
    - **logits**: nothing but logits, of a router whose model declares them and whose block takes
      the K highest.

    Args:
        num_experts: E, the width of scores and maps.
        top_k: K where the router or its block states it, else 0.
        logits_index: Which output the model declares to be the logits; None where it declares none.
        skips: Whether the last of the E classes is a skip, which the router returns as id 0 with a
            weight of exactly 0.
        limit: K of a router whose map is what a limit has left of the K highest logits, else 0.
    """

    def __init__(
        self,
        num_experts: int,
        *,
        top_k: int = 0,
        logits_index: int | None = None,
        skips: bool = False,
        limit: int = 0,
    ) -> None:
        self.num_experts = num_experts
        self.top_k = top_k
        self.logits_index = logits_index
        self.skips = skips
        self.limit = limit

    def matches(self, module: nn.Module, /) -> bool:
        """True for a module of its own; a bare ``nn.Linear`` makes no choice."""
        return type(module).forward is not nn.Linear.forward

    def read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, /
    ) -> Routing | None:
        """The routing in ``output``, or None when no rule reads it.

        Cost: comparisons of dtypes and shapes, which the compiler folds away; a top-k under the
        rule of the logits.
        """
        items = _items(output)
        tensors = [item for item in items if isinstance(item, Tensor) and item.dim() >= 2]
        by_ids = self._by_ids(tensors)
        if by_ids is not None:
            return by_ids
        limited = read_routes(items, self.num_experts) or read_slots(items, args, self.num_experts)
        if limited is not None:
            return limited
        wide = [item for item in tensors if item.shape[-1] == self.num_experts]
        logits_TE = self._declared_logits(items, wide)
        maps = [item for item in wide if item is not logits_TE]
        if maps:
            return self._by_map(maps, logits_TE)
        if logits_TE is not None and 0 < self.top_k < self.num_experts:
            ids_TK = logits_TE.detach().topk(self.top_k, dim=-1).indices
            return Routing(ids_TK, logits_TE)
        return None

    def _by_ids(self, tensors: Sequence[Tensor]) -> Routing | None:
        ids = [item for item in tensors if item.dtype in _INTEGERS]
        if len(ids) != 1:
            return None
        ids_TK, K = ids[0], ids[0].shape[-1]
        scores = [
            item
            for item in tensors
            if item.dtype.is_floating_point and item.shape[:-1] == ids_TK.shape[:-1]
        ]
        wider = [item for item in scores if item.shape[-1] > K]
        weights = [item for item in scores if item.shape[-1] == K]
        if not wider and self.top_k == K and len(weights) > 1:
            # All experts are chosen: logits and weights have one shape, and logits come first. A
            # router that does not choose all of them returned a mask over experts, not ids.
            wider, weights = weights[:1], weights[1:]
        if not weights or self.num_experts < K or (not wider and self.num_experts == K):
            return None
        if self.skips:
            ids_TK = torch.where(weights[0] == 0, self.num_experts - 1, ids_TK)
        return Routing(ids_TK, wider[0] if wider else None, weights[0])

    def _by_map(self, maps: Sequence[Tensor], logits_TE: Tensor | None) -> Routing | None:
        floats = [item for item in maps if item.dtype.is_floating_point]
        flags = [item for item in maps if not item.dtype.is_floating_point]
        # Combine weights say more than flags, which may hold the first choice only. Without
        # declared logits a float tensor may be the logits themselves, which are 0 nowhere.
        if logits_TE is not None and self.limit:
            return before_limit((floats or flags)[0], logits_TE, self.limit)
        if floats and logits_TE is not None:
            return Routing(logits_TE=logits_TE, routing_map_TE=floats[0])
        if flags:
            return Routing(logits_TE=logits_TE, routing_map_TE=flags[0])
        return None

    def _declared_logits(self, items: Sequence[Any], wide: Sequence[Tensor]) -> Tensor | None:
        if self.logits_index is None or self.logits_index >= len(items):
            return None
        declared = items[self.logits_index]
        return next((item for item in wide if item is declared), None)


def _items(output: Any) -> list[Any]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else []
