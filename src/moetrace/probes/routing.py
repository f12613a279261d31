"""A forward hook on a router: reader in, accumulator out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.ops import TracerState, accumulate, count, counts_now, expect, note_expected
from moetrace.probes.copies import Uncopied
from moetrace.probes.execution import dispatch_modes, is_abstract, is_exported
from moetrace.probes.frames import never_a_frame
from moetrace.probes.gate import GateProbe
from moetrace.readers import Reader
from moetrace.readers.described import described
from moetrace.routing import Routing

__all__ = ["RoutingProbe"]

_LONGEST = 300
"""Characters of a reason."""


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
        expected: Choices per expert that the reader has computed by a rule, to be held against what
            the experts receive; None where it reads what the model itself uses.
        gate: The hook that holds the logits for this one, where they show at another place.

    Attributes:
        unread: Forwards of which nothing was counted, since their routing could not be read; those
            that a compiler has traced are not among them.
        unread_because: Why the first of them was not.
    """

    def __init__(
        self,
        accumulator: Tensor,
        reader: Reader,
        scoring: int,
        state: TracerState,
        kind: int | None = None,
        expected: Tensor | None = None,
        gate: GateProbe | None = None,
    ) -> None:
        self.accumulator = accumulator
        self.reader = reader
        self.scoring = scoring
        self.state = state
        self.kind = kind
        self.expected = expected
        self.gate = gate
        self.unread = 0
        self.unread_because = ""
        self.handle = state.handle

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any = None,
    ) -> None:
        """Count this forward. Cost: see `moetrace.ops.count`; returns None on every path.

        Put before a forward it gets no output. What cannot be read is noted, never raised.
        """
        if is_exported():
            return
        traced = torch.compiler.is_compiling()
        try:
            routing = self.reader.read(module, args, kwargs, output)
            if isinstance(routing, Routing) and _choice_of(routing) is not None:
                self._count(module, routing, traced=traced)
                return
        except Exception as error:  # a reader of the user's must not end the training
            if not traced and counts_now(self.handle):
                self._note(f"its reader raised {type(error).__name__}: {error}")
            return
        # A traced forward leaves nothing behind in Python: there it shows as a silent site.
        if not traced and counts_now(self.handle):
            self._note(self.unread_because or self._reason(args, kwargs, output, routing))

    def _count(self, module: nn.Module, routing: Routing, *, traced: bool) -> None:
        # A dispatch mode (selective checkpointing, FakeTensor) has to see one operator and nothing
        # of what is inside it; without one the body is called directly, which saves 5 us.
        plain = not traced and dispatch_modes() == 0
        if not plain and not traced and is_abstract(_choice_of(routing)):
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
            None if self.gate is None else self.gate.key,
        )
        if self.expected is not None and routing.topk_expert_ids_TK is not None:
            note = note_expected if plain else expect
            note(self.expected, routing.topk_expert_ids_TK, self.handle)

    def _reason(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, routing: Any
    ) -> str:
        if isinstance(routing, Routing):
            return "its reader returned a Routing with neither expert ids nor a map"
        if routing is not None:
            return f"its reader returned {described(routing)} where a Routing or None belongs"
        if getattr(self.reader, "before_forward", False):
            called_with = described((*args, *kwargs.values()))
            return f"its reader reads nothing from a call with {called_with}"
        return f"its reader reads nothing from an output of {described(output)}"

    def _note(self, why: str) -> None:
        self.unread += 1
        self.unread_because = self.unread_because or why.splitlines()[0][:_LONGEST]

    def _mask_of_kind(self, routing: Routing) -> Tensor | None:
        """The real ones of this kind's tokens: the first or the last of the mask by kind."""
        mask_T, choice = self.state.mask_by_kind_T, routing.topk_expert_ids_TK
        if mask_T is None or choice is None:
            return mask_T
        tokens = choice.numel() // choice.shape[-1]
        return mask_T[:tokens] if self.kind == 0 else mask_T[mask_T.shape[0] - tokens :]


never_a_frame(RoutingProbe.__call__)


def _choice_of(routing: Routing) -> Tensor | None:
    ids_TK = routing.topk_expert_ids_TK
    return routing.routing_map_TE if ids_TK is None else ids_TK


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
