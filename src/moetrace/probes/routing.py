"""A forward hook on a router: reader in, accumulator out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.ops import TracerState, accumulate, count, expect, note_expected
from moetrace.probes.copies import Uncopied
from moetrace.probes.execution import dispatch_modes, is_abstract, is_exported
from moetrace.probes.frames import never_a_frame
from moetrace.readers import Reader
from moetrace.routing import Routing

__all__ = ["RoutingProbe"]


class RoutingProbe(Uncopied):
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
        expected: Choices per expert that the reader has computed by a rule, to be held against what
            the experts receive; None where it reads what the model itself uses.
    """

    def __init__(
        self,
        accumulator: Tensor,
        reader: Reader,
        scoring: int,
        state: TracerState,
        kind: int | None = None,
        gated: bool = False,
        expected: Tensor | None = None,
    ) -> None:
        self.accumulator = accumulator
        self.reader = reader
        self.scoring = scoring
        self.state = state
        self.kind = kind
        self.gated = gated
        self.expected = expected
        self.handle = state.handle

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any = None,
    ) -> None:
        """Count this forward. Cost: see `moetrace.ops.count`; returns None on every path.

        Put before a forward it gets no output.
        """
        if is_exported():
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
        plain = not traced and dispatch_modes() == 0
        if not plain and not traced and is_abstract(_choice(routing)):
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
        if self.expected is not None and routing.topk_expert_ids_TK is not None:
            note = note_expected if plain else expect
            note(self.expected, routing.topk_expert_ids_TK, self.handle)

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


never_a_frame(RoutingProbe.__call__)


def _choice(routing: Routing) -> Tensor | None:
    for part in (routing.topk_expert_ids_TK, routing.routing_map_TE, routing.logits_TE):
        if part is not None:
            return part
    return None


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
