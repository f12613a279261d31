"""A forward hook on the gate inside a router, for routers that keep their logits to themselves."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from moetrace.ops import TracerState
from moetrace.probes.frames import never_a_frame

__all__ = ["GateProbe"]


class GateProbe:
    """Leaves the logits in the tracer's state until the router around the gate has returned.

    Args:
        state: Shared by all hooks of the tracer.
    """

    def __init__(self, state: TracerState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Cost: an assignment; returns None on every path."""
        self.state.gate_logits_TE = output if isinstance(output, Tensor) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (contextlib.nullcontext(), "__exit__")


never_a_frame(GateProbe.__call__)
