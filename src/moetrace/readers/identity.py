"""Identity and zero experts: what a router can choose and nothing computes.

Routers that let a token skip its experts have columns for it after those of the experts: LongCat's
zero experts, the skip class of Zaya, ``nn.Identity`` at the end of a list. They are no experts: a
dead one costs nothing, and a busy one is no imbalance.
"""

from collections.abc import Iterator

from torch import nn

from moetrace.readers.structure import (
    COUNT_ATTRIBUTES,
    IDENTITY_ATTRIBUTES,
    idle_at_end,
    number_stated,
)
from moetrace.readers.wrapping import unwrapped

__all__ = ["identity_experts"]


def identity_experts(router: nn.Module, block: nn.Module | None, columns: int) -> int:
    """How many of the last columns of a router are of identity experts; 0 where nothing says so.

    It takes a list that ends in them, or a number that somebody states and that is the difference
    between the columns and the experts that have weights. A router with one class more than it has
    experts has a class that skips them.

    Args:
        router: The router.
        block: The module around it, or None.
        columns: What it chooses among.
    """
    if number_stated(router, ("num_router_classes",)) == columns:
        return int(number_stated(router, COUNT_ATTRIBUTES) == columns - 1)
    if block is None or not columns:
        return 0
    holders = list(_holders(router, block))
    stated = max(number_stated(part, IDENTITY_ATTRIBUTES) for part in (router, block, *holders))
    for holder in holders:
        count, idle = _with_weights(holder)
        if count and idle and count + idle == columns:
            return idle
        if stated and count == columns - stated:
            return stated
    return 0


def _holders(router: nn.Module, block: nn.Module) -> Iterator[nn.Module]:
    """What may hold the experts of a block: itself, its children, and lists right below those."""
    yield block
    for child in block.children():
        if (inner := unwrapped(child)) is not router:
            yield inner
            yield from inner.children()


def _with_weights(holder: nn.Module) -> tuple[int, int]:
    """Experts that have weights in a module, and those that are listed after them without any."""
    if isinstance(holder, nn.ModuleList | nn.ModuleDict):
        idle = idle_at_end(holder)
        return len(holder) - idle, idle
    stacked = [p.shape[0] for p in holder.parameters(recurse=False) if p.dim() >= 3]
    return (int(min(stacked)), 0) if stacked else (0, 0)
