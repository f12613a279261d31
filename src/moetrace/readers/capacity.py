"""Routers with a capacity limit: what they return, and what they chose before the limit.

Letters: T tokens (any leading dimensions), E experts, K experts chosen per token, C slots that each
expert has for tokens.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.routing import Routing

__all__ = ["before_limit", "choices_by_name", "is_limited", "limit_of", "read_routes", "read_slots"]

_TINY = 2.0**-40
"""Stands for a weight of exactly 0 where a token does go to an expert; adds nothing to a sum."""


def read_slots(items: Sequence[Any], args: Sequence[Any], num_experts: int) -> Routing | None:
    """The choice in dispatch and combine tensors ``(..., E, C)``, as GShard returns them.

    Two tensors of one shape, led by the shape of the tokens that went in; where a token has a slot
    of an expert they are not 0. The last float one holds the mixing weights: dispatch comes first
    where both are floats, and is bool otherwise. Cost: a sum over the slots.
    """
    hidden = args[0] if args else None
    if not isinstance(hidden, Tensor) or hidden.dim() < 2:
        return None
    leading = (*hidden.shape[:-1], num_experts)
    slots = [
        item for item in items if isinstance(item, Tensor) and tuple(item.shape[:-1]) == leading
    ]
    if len(slots) < 2 or slots[0].shape != slots[1].shape or slots[0].dim() < 3:
        return None
    floats = [item for item in slots if item.dtype.is_floating_point]
    if not floats:
        return None
    return Routing(routing_map_TE=floats[-1].detach().sum(-1))


def read_routes(items: Sequence[Any], num_experts: int) -> Routing | None:
    """The choice in routes ``(K, T)``, as DeepSpeed returns them: experts, slots and weights.

    One integer tensor of experts, -1 where the limit has left the choice out, and one of slots,
    with weights of the same shape, beside E as a number or a count per expert. Cost: one scatter
    into ``(T, E)``.
    """
    whole = [item for item in items if isinstance(item, Tensor) and item.dim() == 2]
    routes = [item for item in whole if item.dtype in (torch.int32, torch.int64)]
    weights = [item for item in whole if item.dtype.is_floating_point]
    if len(routes) != 2 or not weights or len({item.shape for item in (*routes, *weights)}) != 1:
        return None
    counts = [item for item in items if isinstance(item, Tensor) and item.shape == (num_experts,)]
    if num_experts not in [item for item in items if isinstance(item, int)] and not counts:
        return None
    ids_TK, weights_TK = routes[0].t().long(), weights[0].detach().t().float()
    kept_TK = ids_TK >= 0
    shown_TK = torch.where(kept_TK, weights_TK.clamp_min(_TINY), 0.0)
    map_TE = shown_TK.new_zeros(ids_TK.shape[0], num_experts)
    return Routing(routing_map_TE=map_TE.scatter_add(1, ids_TK.clamp_min(0), shown_TK))


def before_limit(map_TE: Tensor, logits_TE: Tensor, top_k: int) -> Routing:
    """The K experts that a router chose, beside the map of what its limit has left of them.

    Those that are left come first, then the highest of the others: so what the map shows is always
    among them, whatever a tie or a cast to fewer digits has decided.
    """
    scores_TE = logits_TE.detach().float().masked_fill(map_TE != 0, torch.inf)
    ids_TK = scores_TE.topk(top_k, dim=-1).indices
    weights_TK = map_TE.detach().gather(-1, ids_TK) if map_TE.dtype.is_floating_point else None
    return Routing(ids_TK, logits_TE, weights_TK, map_TE)


def limit_of(router: nn.Module) -> int:
    """K of a router whose choice before its limit are the K highest of the logits it returns.

    0 for all others: those without a limit of this kind, and NLLB-MoE where it samples the second
    expert, since it adds the noise to the logits after it has chosen the first.
    """
    if not hasattr(router, "expert_capacity"):
        return 0
    if getattr(router, "second_expert_policy", "all") == "sampling":
        return 0
    return choices_by_name(router)


def is_limited(router: nn.Module) -> bool:
    """Whether what the router returns may be what a capacity limit has left of its choice.

    It has an attribute or a setting named after a capacity, or is a gate after GShard, whose class
    is called by its K (``Top2Gate``).
    """
    config = getattr(router, "config", None)
    stated = (getattr(config, "moe_expert_capacity_factor", None), *_capacities(router))
    if any(value is not None for value in stated) or hasattr(router, "expert_capacity"):
        return limit_of(router) == 0
    return any(re.search(r"Top\d+Gat(e|ing)$", base.__name__) for base in type(router).__mro__)


def choices_by_name(router: nn.Module) -> int:
    """K as the class of a router says it (``Top2Router``); 0 where it does not.

    >>> choices_by_name(type("Top2Gate", (nn.Module,), {})())
    2
    """
    for base in type(router).__mro__:
        if said := re.search(r"Top(\d+)(?=[A-Z]|$)", base.__name__):
            return int(said[1])
    return 0


def _capacities(router: nn.Module) -> list[Any]:
    return [value for name, value in vars(router).items() if "capacity" in name.lower()]
