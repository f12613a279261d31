"""Which modules of a block hold its experts, for a trial to look at.

Letters: E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

__all__ = ["Holder", "holders_of"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A module that holds experts.

    Attributes:
        module: The module; its call may say which experts run.
        experts: Experts whose weights are all in it: identity and skip experts have none.
        children: The experts themselves where they are modules, in their order; else empty.
    """

    module: nn.Module
    experts: int
    children: tuple[nn.Module, ...] = ()


def holders_of(block: nn.Module | None, router: nn.Module, num_experts: int) -> list[Holder]:
    """The holders of E experts, or of fewer where some experts compute nothing, below a block.

    Args:
        block: The MoE block; None where the router is the whole model.
        router: What is hooked: a holder only where the choice is read off the experts' call.
        num_experts: E as the router counts.
    """
    if block is None:
        return []
    inside = {id(module) for module in router.modules() if module is not router}
    found = [
        holder
        for module in block.modules()
        if id(module) not in inside and (holder := _holder(module, num_experts)) is not None
    ]
    whole = [holder for holder in found if holder.experts == num_experts]
    # Where no module shows by its weights that it holds experts, its call may show it still.
    callees = [Holder(child, num_experts) for child in block.children() if child is not router]
    return whole or _largest(found) or callees


def _holder(module: nn.Module, num_experts: int) -> Holder | None:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        with_weights = [c for c in module.children() if next(c.parameters(), None) is not None]
        kinds = [type(child) for child in with_weights]
        children = tuple(c for c in with_weights if type(c) is max(set(kinds), key=kinds.count))
        if 2 <= len(children) <= num_experts:
            return Holder(module, len(children), children)
        return None
    stacked = {int(p.shape[0]) for p in module.parameters(recurse=False) if p.dim() >= 3}
    if not stacked or isinstance(module, nn.modules.conv._ConvNd):
        return None
    if max(stacked) > num_experts or min(stacked) < 2:
        return None
    return Holder(module, min(stacked))


def _largest(found: Sequence[Holder]) -> list[Holder]:
    """Those with the most experts."""
    most = max((holder.experts for holder in found), default=0)
    return [holder for holder in found if holder.experts == most]
