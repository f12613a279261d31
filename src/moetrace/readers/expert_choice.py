"""Routers whose experts choose tokens instead of the other way round.

Letters: T tokens, E experts, C tokens that each expert takes, B sequences of S tokens each.
"""

import torch
from torch import Tensor

from moetrace.routing import Routing

__all__ = ["by_experts"]

_TINY = 2.0**-40
"""Stands for a weight of exactly 0 where a token does go to an expert; adds nothing to a sum."""


def by_experts(
    ids: Tensor, weights: Tensor, logits_TE: Tensor | None, hidden: Tensor, num_experts: int
) -> Routing | None:
    """The tokens ``(E, C)`` or ``(B, E, C)`` that experts chose, as a map over experts.

    Args:
        ids: Positions of the chosen tokens, among all or within each sequence.
        weights: Their mixing weights, of the same shape.
        logits_TE: Scores ``(T, E)``, or None.
        hidden: What the router was called with, ``(T, D)`` or ``(B, S, D)``.
        num_experts: E.

    Returns:
        The map, or None where the shapes are not those. Cost: one scatter into ``(T, E)``.
    """
    if ids.dim() not in (2, 3) or ids.shape[-2] != num_experts:
        return None
    whole = ids.dim() == 2
    tokens = hidden.shape[:-1].numel() if whole else hidden.shape[-2]
    if ids.shape[-1] > tokens or (not whole and ids.shape[0] != hidden.shape[0]):
        return None
    if logits_TE is not None and logits_TE.shape[:-1].numel() != hidden.shape[:-1].numel():
        logits_TE = None
    shown = weights.detach().float()
    shown = torch.where(shown == 0, _TINY, shown)
    map_ET = shown.new_zeros(*ids.shape[:-1], tokens).scatter(-1, ids.long(), shown)
    return Routing(logits_TE=logits_TE, routing_map_TE=map_ET.transpose(-1, -2))
