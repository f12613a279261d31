"""A forward hook on a router: reader in, accumulator out."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from moetrace.ops import TracerState, accumulate, count
from moetrace.probes.frames import never_a_frame
from moetrace.readers import Reader
from moetrace.routing import Routing

__all__ = ["RoutingProbe"]

_is_tracing: Callable[[], bool] = getattr(torch.jit, "is_tracing", lambda: False)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


class RoutingProbe:
    """Counts what one router decides: one operator, nothing else.

    A callable object and no closure, so that a copy of the model (EMA, a pickle, ``torch.save``)
    carries a hook that does nothing, needs no moetrace and leaves this run alone. It keeps neither
    the model nor the tracer alive. Everything in it is the same for all routers of a model but the
    accumulator, which is a tensor: a number per layer would recompile every block.

    Args:
        accumulator: The router's sums, `moetrace.accumulator`.
        reader: Reads the routing; shared by the routers that it matches.
        scoring: Position in `moetrace.layout.SCORINGS`.
        state: Shared by all hooks of the tracer.
        kind: The kind of token, 0 or 1, that alone comes to this router; None where all do.
        gated: Whether a `GateProbe` is on the gate inside this router.
    """

    def __init__(
        self,
        accumulator: Tensor,
        reader: Reader,
        scoring: int,
        state: TracerState,
        kind: int | None = None,
        gated: bool = False,
    ) -> None:
        self.accumulator = accumulator
        self.reader = reader
        self.scoring = scoring
        self.state = state
        self.kind = kind
        self.gated = gated
        self.handle = state.handle

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Count this forward. Cost: see `moetrace.ops.count`; returns None on every path."""
        if torch.compiler.is_exporting() or _is_tracing():
            return
        try:
            routing = self.reader.read(module, args, kwargs, output)
        except Exception:
            return  # shows as a site that never fired; a user's reader must not end the training
        if self.gated and routing is not None:
            routing = self._with_logits(routing)
        if routing is None:
            return
        # A dispatch mode (selective checkpointing, FakeTensor) has to see one operator and nothing
        # of what is inside it; without one the body is called directly, which saves 5 us.
        traced = torch.compiler.is_compiling()
        plain = not traced and _dispatch_modes() == 0
        if not plain and not traced and _is_abstract(routing):
            return
        add = count if plain else accumulate
        add(
            self.accumulator,
            _detached(routing.logits_TE),
            routing.topk_expert_ids_TK,
            _detached(routing.topk_weights_TK),
            _detached(routing.routing_map_TE),
            self.state.mask_T if self.kind is None else self._mask_of_kind(routing),
            torch.is_grad_enabled(),
            module.training,
            self.scoring,
            self.handle,
        )

    def _with_logits(self, routing: Routing) -> Routing:
        """The routing with the logits of the gate inside, where it came without."""
        logits_TE, self.state.gate_logits_TE = self.state.gate_logits_TE, None
        choice = routing.topk_expert_ids_TK
        choice = routing.routing_map_TE if choice is None else choice
        if routing.logits_TE is not None or logits_TE is None or choice is None:
            return routing
        tokens, gate_tokens = choice.shape[:-1].numel(), logits_TE.shape[:-1].numel()
        return routing._replace(logits_TE=logits_TE) if tokens == gate_tokens else routing

    def _mask_of_kind(self, routing: Routing) -> Tensor | None:
        """The real ones of this kind's tokens: the first or the last of the mask by kind."""
        mask_T, choice = self.state.mask_by_kind_T, routing.topk_expert_ids_TK
        if mask_T is None or choice is None:
            return mask_T
        tokens = choice.numel() // choice.shape[-1]
        return mask_T[:tokens] if self.kind == 0 else mask_T[mask_T.shape[0] - tokens :]

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _silent()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (contextlib.nullcontext(), "__exit__")


never_a_frame(RoutingProbe.__call__)


def _is_abstract(routing: Routing) -> bool:
    """Whether a forward only goes through the motions: fake tensors, or a graph being recorded."""
    choice = routing.topk_expert_ids_TK
    choice = routing.routing_map_TE if choice is None else choice
    return isinstance(choice, FakeTensor) or get_proxy_mode() is not None


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _silent() -> Callable[..., None]:
    # Takes anything, does nothing, returns None, and is found in every Python.
    return contextlib.nullcontext().__exit__
