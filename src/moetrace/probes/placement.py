"""The hooks of one tracer: on the routers, on what shows their logits, and on who has the mask."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moetrace.accumulator import Accumulators
from moetrace.layout import SCORINGS
from moetrace.ops import TracerState
from moetrace.probes.gate import GateProbe
from moetrace.probes.lookups import TableProbe
from moetrace.probes.mask import MaskProbe, takes_a_mask
from moetrace.probes.receipts import ReceiptProbe, Receipts
from moetrace.probes.routing import RoutingProbe
from moetrace.readers import Found

__all__ = ["Placement", "device_of", "is_hooked", "put_hooks"]


@dataclass(frozen=True, slots=True)
class Placement:
    """The hooks of one tracer.

    Attributes:
        probes: On the routers, in their order.
        routers: The routers, in the same order.
        receipts: What experts received, for the routers whose choice is computed again by a rule.
        handles: Of all hooks.
    """

    probes: tuple[RoutingProbe, ...]
    routers: tuple[weakref.ref[nn.Module], ...]
    receipts: tuple[Receipts, ...]
    handles: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Take all hooks off the model."""
        for handle in self.handles:
            handle.remove()

    def follow(self, accumulators: Accumulators) -> None:
        """Move the sums of each router to where the router computes now."""
        for index, (probe, router) in enumerate(zip(self.probes, self.routers, strict=True)):
            module = router()
            device = None if module is None else device_of(module)
            if device is not None and device != probe.accumulator.device:
                accumulators.move(index, device)
                probe.accumulator = accumulators.tensors[index]
                if probe.gate is not None:
                    probe.gate.accumulator = probe.accumulator
                for receipts in self.receipts:
                    if receipts.router == index:
                        probe.expected = receipts.move(device)


def put_hooks(
    model: nn.Module,
    routers: Sequence[Found],
    accumulators: Sequence[Tensor],
    state: TracerState,
    tables: Sequence[nn.Module] = (),
) -> Placement:
    """Put all hooks on.

    Args:
        model: The traced model.
        routers: Candidates that are taken.
        accumulators: Their sums, in the same order.
        state: Shared by all hooks.
        tables: Tables of experts, which leave padding out by the same masks.
    """
    probes, receipts, handles = [], [], []
    for index, (item, accumulator) in enumerate(zip(routers, accumulators, strict=True)):
        assert item.reader is not None, "a candidate that is left has no hook"
        tally = Receipts(index, item.site.columns, accumulator.device)
        gate = None if item.gate is None else GateProbe(accumulator, state)
        probe = RoutingProbe(
            accumulator,
            item.reader,
            SCORINGS.index(item.site.scoring),
            state,
            item.site.kind,
            tally.expected_E if item.receivers else None,
            gate,
        )
        before = getattr(item.reader, "before_forward", False)
        put = item.module.register_forward_pre_hook if before else item.module.register_forward_hook
        handles.append(put(probe, with_kwargs=True))
        if item.gate is not None and gate is not None:
            handles.append(item.gate.register_forward_hook(gate))
        for expert, rows in zip(item.receivers, tally.rows, strict=False):
            hook = ReceiptProbe(rows, state)
            handles.append(expert.register_forward_pre_hook(hook, with_kwargs=True))
        probes.append(probe)
        receipts += [tally] if item.receivers else []
    handles += _put_mask_probes(model, [*(item.module for item in routers), *tables], state)
    modules = tuple(weakref.ref(item.module) for item in routers)
    return Placement(tuple(probes), modules, tuple(receipts), tuple(handles))


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module computes: the device of its first parameter or buffer; None on ``meta``."""
    for tensor in (*module.parameters(), *module.buffers()):
        return None if tensor.is_meta else tensor.device
    return torch.device("cpu")


def is_hooked(module: nn.Module) -> bool:
    """Whether a tracer reads a routing off this module."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(isinstance(hook, RoutingProbe | TableProbe) for hook in hooks)


def _put_mask_probes(
    model: nn.Module, routers: Sequence[nn.Module], state: TracerState
) -> list[RemovableHandle]:
    owners = _mask_owners(model, routers)
    handles = []
    for owner in owners:
        inner = any(owner is not other and owner in other.modules() for other in owners)
        probe = MaskProbe(owner, state, inner=inner)
        handles.append(owner.register_forward_pre_hook(probe, with_kwargs=True))
    return handles


def _mask_owners(model: nn.Module, routers: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules above a router that get tokens and their attention mask.

    Inner ones come later and outrank outer ones: an encoder and a decoder have masks of their own.
    """
    wanted = {id(router) for router in routers}
    return [
        module
        for module in model.modules()
        if takes_a_mask(module) and any(id(inner) in wanted for inner in module.modules())
    ]
