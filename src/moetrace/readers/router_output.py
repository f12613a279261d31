"""Reading what a router module returns, by rules on types and shapes.

Letters: T tokens (any leading dimensions), E experts, K experts chosen per token.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.readers.capacity import before_limit, read_routes, read_slots
from moetrace.readers.expert_choice import by_experts
from moetrace.readers.structure import expert_columns, expert_rows
from moetrace.readers.wrapping import class_of
from moetrace.routing import Routing

__all__ = ["RouterReader", "hidden_of", "items_of"]

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
        scores_index: Which output the router's source shows to be logits or probabilities.
        map_indices: Which outputs its source shows to be neither, so that one may be a map.
        by_experts: Whether its experts may choose tokens; then a forward of as many tokens as there
            are experts is not counted, since the two cannot be told apart.
    """

    def __init__(
        self,
        num_experts: int,
        *,
        top_k: int = 0,
        logits_index: int | None = None,
        skips: bool = False,
        limit: int = 0,
        scores_index: int | None = None,
        map_indices: tuple[int, ...] = (),
        by_experts: bool = False,
    ) -> None:
        self.num_experts = num_experts
        self.top_k = top_k
        self.logits_index = logits_index
        self.skips = skips
        self.limit = limit
        self.scores_index = scores_index
        self.map_indices = map_indices
        self.by_experts = by_experts

    def matches(self, module: nn.Module, /) -> bool:
        """True for a module of one's own with a matrix of E rows, or columns; no layer of torch."""
        if class_of(module).__module__.startswith("torch."):
            return False
        return self.num_experts in (expert_rows(module), expert_columns(module))

    def read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, /
    ) -> Routing | None:
        """The routing in ``output``, or None when no rule reads it.

        Cost: comparisons of dtypes and shapes, which the compiler folds away; a top-k under the
        rule of the logits.
        """
        items = items_of(output)
        tensors = _dense(items)
        shown_TE = self._at(self.scores_index, items)
        by_ids = self._by_ids(tensors, hidden_of(args, kwargs), shown_TE)
        if by_ids is not None:
            return by_ids
        if any(items_of(item) and not isinstance(item, Tensor) for item in items):
            inner = _dense([part for item in items for part in (items_of(item) or [item])])
            by_ids = self._by_ids(inner, hidden_of(args, kwargs), shown_TE)
            if by_ids is not None:
                return by_ids
        limited = read_routes(items, self.num_experts) or read_slots(items, args, self.num_experts)
        if limited is not None:
            return limited
        wide = [item for item in tensors if item.dim() >= 2 and item.shape[-1] == self.num_experts]
        declared_TE = self._at(self.logits_index, items)
        logits_TE = shown_TE if declared_TE is None else declared_TE
        maps = [item for item in wide if item is not logits_TE]
        shown_maps = [self._at(at, items) for at in self.map_indices]
        shown_maps = [item for item in shown_maps if item is not None]
        by_map = self._by_map(maps, logits_TE, shown_maps[0] if shown_maps else None)
        if by_map is not None or maps:
            return by_map
        if declared_TE is not None and 0 < self.top_k < self.num_experts:
            ids_TK = declared_TE.detach().topk(self.top_k, dim=-1).indices
            return Routing(ids_TK, declared_TE)
        return None

    def _by_ids(
        self, tensors: Sequence[Tensor], hidden: Tensor | None, shown_TE: Tensor | None
    ) -> Routing | None:
        integers, floats = [], []
        for item in tensors:
            dtype = item.dtype
            if dtype in _INTEGERS:
                integers.append(item)
            elif dtype.is_floating_point:
                floats.append(item)
        ids = [item for item in integers if item.dim() >= 2]
        if not ids and hidden is not None:  # one expert per token, and no axis for it
            ids = [item for item in integers if item.shape == hidden.shape[:-1]]
        if len(ids) > 1:  # a tensor over the experts may be of integers too: ids have weights
            ids = [item for item in ids if item.shape[-1] != self.num_experts]
        if len(ids) != 1:
            return None
        weights, wider = [], []
        shape = ids[0].shape
        for item in floats:
            if item.shape == shape:
                weights.append(item)
            elif item.dim() >= 2 and item.shape[-1] == self.num_experts:
                wider.append(item)
        K = shape[-1]
        if not wider and self.top_k == K == self.num_experts and len(weights) > 1:
            # All experts are chosen: logits and weights have one shape, and logits come first. A
            # router that does not choose all of them returned a mask over experts, not ids.
            wider, weights = weights[:1], weights[1:]
        if not weights:
            return None
        logits_TE = next((item for item in wider if item is shown_TE), wider[0] if wider else None)
        by_tokens = self._by_tokens(ids[0], weights[0], logits_TE, hidden)
        if by_tokens is not None or hidden is None:
            return by_tokens
        return by_experts(ids[0], weights[0], logits_TE, hidden, self.num_experts)

    def _by_tokens(
        self, ids: Tensor, weights: Tensor, logits_TE: Tensor | None, hidden: Tensor | None
    ) -> Routing | None:
        """Ids ``(..., K)`` of each token, or ``(...)`` of the one that each token goes to."""
        if hidden is not None and ids.shape == hidden.shape[:-1]:
            ids, weights = ids.unsqueeze(-1), weights.unsqueeze(-1)
        if ids.dim() < 2 or not 0 < ids.shape[-1] <= self.num_experts:
            return None
        rows = _rows_of(ids)
        if self.by_experts and rows == self.num_experts and self.top_k != ids.shape[-1]:
            return None
        if logits_TE is not None:
            fits = _rows_of(logits_TE) == rows
        else:
            known = () if hidden is None else (hidden.shape[:-1].numel(), hidden.shape[0])
            fits = (rows in known or hidden is None) and ids.shape[-1] < self.num_experts
        if not fits:
            return None
        if self.skips:
            ids = torch.where(weights == 0, self.num_experts - 1, ids)
        return Routing(ids, logits_TE, weights)

    def _by_map(
        self, maps: Sequence[Tensor], logits_TE: Tensor | None, map_TE: Tensor | None
    ) -> Routing | None:
        floats = [item for item in maps if item.dtype.is_floating_point]
        flags = [item for item in maps if not item.dtype.is_floating_point]
        # Combine weights say more than flags, which may hold the first choice only. Without
        # declared logits a float tensor may be the logits themselves, which are 0 nowhere.
        if logits_TE is not None and self.limit and maps:
            return before_limit((floats or flags)[0], logits_TE, self.limit)
        if map_TE is not None and not flags:
            return Routing(logits_TE=logits_TE, routing_map_TE=map_TE)
        if floats and logits_TE is not None and self.logits_index is not None:
            return Routing(logits_TE=logits_TE, routing_map_TE=floats[0])
        if flags:
            return Routing(logits_TE=logits_TE, routing_map_TE=flags[0])
        return None

    def _at(self, index: int | None, items: Sequence[Any]) -> Tensor | None:
        """The output at this place, where it is one score per expert."""
        item = items[index] if index is not None and index < len(items) else None
        if not isinstance(item, Tensor) or item.dim() < 2 or item.shape[-1] != self.num_experts:
            return None
        return item if item.dtype.is_floating_point else None


def _dense(items: Sequence[Any]) -> list[Tensor]:
    return [
        item
        for item in items
        if isinstance(item, Tensor) and item.layout is torch.strided and item.dim() >= 1
    ]


def _rows_of(tensor: Tensor) -> int:
    # The product over a slice of the shape costs more than all else that is asked of it.
    return tensor.shape[0] if tensor.dim() == 2 else tensor.shape[:-1].numel()


def items_of(output: Any) -> list[Any]:
    """What a module has returned, one after the other: of a tuple, a dict or a dataclass."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return list(output.values())
    if isinstance(output, tuple | list):
        return list(output)
    if dataclasses.is_dataclass(output):
        return [getattr(output, field.name, None) for field in dataclasses.fields(output)]
    return []


def hidden_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The hidden states ``(..., D)`` that a module was called with, or None."""
    for item in (*args, *kwargs.values()):
        if isinstance(item, Tensor) and item.dtype.is_floating_point and item.dim() >= 2:
            return item
    return None
