"""A forward hook on a gate whose choice shows at another place than its logits."""

from typing import Any

import torch
from torch import Tensor, nn

from moetrace.ops import TracerState, hold, hold_logits
from moetrace.probes.copies import Uncopied
from moetrace.probes.execution import dispatch_modes, is_abstract, is_exported
from moetrace.probes.frames import never_a_frame

__all__ = ["GateProbe"]


class GateProbe(Uncopied):
    """Hands a gate's logits to the operator, which keeps them until the choice is counted.

    Args:
        accumulator: That of the router.
        state: Shared by all hooks of the tracer.

    Attributes:
        key: Says whose logits they are, to the operator.
    """

    def __init__(self, accumulator: Tensor, state: TracerState) -> None:
        self.accumulator = accumulator
        self.key = torch.zeros((), dtype=torch.int64, device=accumulator.device)
        self.handle = state.handle

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Cost: see `moetrace.ops.hold`; returns None on every path."""
        if is_exported() or not isinstance(output, Tensor):
            return
        traced = torch.compiler.is_compiling()
        plain = not traced and dispatch_modes() == 0
        if not plain and not traced and is_abstract(output):
            return
        keep = hold if plain else hold_logits
        keep(self.accumulator, self.key, output.detach(), self.handle)


never_a_frame(GateProbe.__call__)
