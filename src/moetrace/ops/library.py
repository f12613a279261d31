"""The accumulate operator: opaque to the compiler, and the one place that decides what counts.

Which router it is, is the accumulator itself. Which tracer, is an int: a look-up in a weak registry
that keeps nothing alive, where an unknown number means closed.

Source of the rule for what counts: the graph task id is set exactly while autograd runs a backward,
whichever way compile and checkpointing are composed; grad mode is read in the traced hook, because
inside an opaque operator it is off in every compiled forward.
"""

import itertools
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from moetrace.layout import AccumulatorLayout
from moetrace.ops.backward import in_backward
from moetrace.ops.fused import add_fused
from moetrace.ops.host_form import add_on_host
from moetrace.ops.reference import routing_delta
from moetrace.routing import Routing

__all__ = [
    "Bin",
    "TracerState",
    "accumulate",
    "count",
    "counts_now",
    "hold",
    "hold_logits",
    "register",
]

_MOST_FAILURES = 3
_LONGEST = 300


class Bin(IntEnum):
    """The rows of an accumulator: what an execution was, as far as it can tell at run time."""

    FIRST = 0
    """First pass with gradients: plain, or of a non-reentrant checkpoint."""
    NO_GRAD = 1
    """A rollout, or the first pass of a reentrant checkpoint; RECOMPUTED tells which."""
    RECOMPUTED = 2
    """Recomputation inside a backward; never added to a first pass."""
    OTHER = 3
    """A forward of the other phase that is open: evaluation, or one that the user named."""


class TracerState:
    """What the hooks and the operator of one tracer share; it knows neither model nor tracer.

    Attributes:
        handle: Number of this tracer in the registry.
        paused: True while nothing is counted.
        skipping: True in a step that sampling leaves out; evaluation and named phases count still.
        named: True while a phase that the user named is open.
        mask_T: Real tokens of the running forward, bool ``(T,)``, or None.
        mask_by_kind_T: The same for a model whose kinds of tokens have routers of their own: those
            of the first kind come first.
        held: Logits that gates have returned, until the choice of the same forward is counted.
        given_mask: Whether the user gave that mask, which then outranks the model's own.
        saw_no_grad, saw_other, saw_first: Whether a bin was written since it was last emptied.
        misplaced: Whether an accumulator stood on another device than its router's output.
        misfits: Forwards whose mask did not fit the router's tokens and was not applied.
        errors: How often the counting failed, by text of the exception.
        lock: Held for the final addition only, never around user code.
    """

    def __init__(self) -> None:
        self.handle = -1
        self.paused = False
        self.skipping = False
        self.named = False
        self.mask_T: Tensor | None = None
        self.mask_by_kind_T: Tensor | None = None
        self.held: dict[tuple[int, int], Tensor] = {}
        self.given_mask = False
        self.saw_first = False
        self.saw_no_grad = False
        self.saw_other = False
        self.misplaced = False
        self.misfits = 0
        self.errors: Counter[str] = Counter()
        self.failures: Counter[int] = Counter()
        self.lock = threading.Lock()

    def keep_mask(self, real_T: Tensor) -> None:
        """Take over a mask. Its address stays while the size does, which CUDA graphs ask for."""
        held = self.mask_T
        if held is None or held.shape != real_T.shape or held.device != real_T.device:
            with torch.inference_mode(False):
                held = torch.empty_like(real_T, memory_format=torch.contiguous_format)
        self.mask_T = held.copy_(real_T)


_states: weakref.WeakValueDictionary[int, TracerState] = weakref.WeakValueDictionary()
_handles = itertools.count()
# A forked child (a DataLoader worker) inherits the hooks; it must not count into its parent's run.
os.register_at_fork(after_in_child=_states.clear)


def register(state: TracerState) -> int:
    """Give the state a handle, under which the operator finds it while it lives."""
    state.handle = next(_handles)
    _states[state.handle] = state
    return state.handle


def count(
    accumulator: Tensor,
    logits_TE: Tensor | None,
    topk_expert_ids_TK: Tensor | None,
    topk_weights_TK: Tensor | None,
    routing_map_TE: Tensor | None,
    mask_T: Tensor | None,
    grad: bool,
    training: bool,
    scoring: int,
    handle: int,
    key: Tensor | None = None,
) -> None:
    """Body of the operator: decide whether and where this execution counts, and add it.

    Never raises an ``Exception``, never synchronises, draws no random number. After three failures
    in a row the site stops counting.

    Args:
        accumulator: The router's sums, int64, ``(len(Bin), W)``; the only thing written.
        logits_TE: Scores before softmax or sigmoid; where there are none, those that `hold` has.
        topk_expert_ids_TK: Chosen experts.
        topk_weights_TK: Their mixing weights, or None.
        routing_map_TE: Chosen experts as a map over experts, where there are no ids.
        mask_T: Real tokens, or None.
        grad: Grad mode as the hook saw it.
        training: ``module.training`` of the router.
        scoring: Position in `moetrace.layout.SCORINGS`.
        handle: Number of the tracer.
        key: Names the router to `hold`, where its logits come that way.

    Cost: one form of the operator and one addition. Where it does not count, about 7 us of a CPU
    with the hook around it (``benchmarks/counted_cost.py``, paused).
    """
    state = _states.get(handle)
    if state is None or state.paused:
        return
    row = _bin_of(state, grad, training)
    if row is None:
        return
    # The address names the router well enough for bookkeeping of errors; it never decides a count.
    if state.failures and state.failures[accumulator.data_ptr()] >= _MOST_FAILURES:
        return
    try:
        num_experts = (accumulator.shape[1] - _FIXED_WIDTH) // _VECTORS
        choice = topk_expert_ids_TK if routing_map_TE is None else routing_map_TE
        if key is not None:
            held_TE = state.held.pop(_place(key), None)
            if logits_TE is None and _fits(held_TE, choice, num_experts):
                logits_TE = held_TE
        if choice is None or choice.is_meta:
            return
        if mask_T is not None:
            if choice.dim() and mask_T.numel() * choice.shape[-1] == choice.numel():
                mask_T = mask_T.reshape(-1).to(choice.device)
            else:
                state.misfits += row != Bin.RECOMPUTED
                mask_T = None
        routing = Routing(topk_expert_ids_TK, logits_TE, topk_weights_TK, routing_map_TE)
        if not (
            accumulator.is_cpu
            and add_on_host(accumulator, row, state.lock, routing, mask_T, num_experts, scoring)
        ):
            with torch.no_grad():
                _add_on_device(state, accumulator, row, routing, mask_T, scoring)
    except Exception as error:
        state.errors[_told(error)] += 1
        state.failures[accumulator.data_ptr()] += 1
        return
    if state.failures:
        state.failures.pop(accumulator.data_ptr(), None)
    if row == Bin.FIRST:
        state.saw_first = True
    elif row == Bin.NO_GRAD:
        state.saw_no_grad = True
    elif row == Bin.OTHER:
        state.saw_other = True


def _add_on_device(
    state: TracerState,
    accumulator: Tensor,
    row: Bin,
    routing: Routing,
    mask_T: Tensor | None,
    scoring: int,
) -> None:
    num_experts = (accumulator.shape[1] - _FIXED_WIDTH) // _VECTORS
    if add_fused(accumulator[row], routing, mask_T, num_experts, scoring):
        return
    delta = routing_delta(routing, mask_T, num_experts, scoring)
    if delta.device != accumulator.device:
        state.misplaced = True
        delta = delta.to(accumulator.device)
    with state.lock:
        accumulator[row].add_(delta)


def hold(accumulator: Tensor, key: Tensor, logits_TE: Tensor, handle: int) -> None:
    """Body of the operator: keep a gate's logits for the `count` of the same forward.

    For routers whose choice shows at another place than their logits. Kept here and not by a hook:
    what a traced hook leaves behind inside a checkpoint breaks the compiler. It is a copy, as the
    block may go on to write into its logits. Cost: one copy of the logits, no sync.

    Args:
        accumulator: That of the router; declared as written, so that this stays before `count`.
        key: Names the router by its address. The accumulator's will not do: a compiled graph may
            write to a copy of what is declared as written.
        logits_TE: What the gate returned.
        handle: Number of the tracer.
    """
    state = _states.get(handle)
    if state is None or state.paused or logits_TE.is_meta or _functional_transform() is not None:
        return
    try:
        with torch.no_grad():
            state.held[_place(key)] = logits_TE.clone()
    except Exception as error:
        state.errors[_told(error)] += 1


def _told(error: Exception) -> str:
    """The first line of an exception: torch may list all its backends below it."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:_LONGEST]}"


def _fits(logits_TE: Tensor | None, choice: Tensor | None, num_experts: int) -> bool:
    """Whether logits are of as many tokens as the choice."""
    if logits_TE is None or choice is None or logits_TE.shape[-1] != num_experts:
        return False
    return logits_TE.numel() * choice.shape[-1] == choice.numel() * num_experts


def _place(key: Tensor) -> tuple[int, int]:
    # Its own thread's: two threads may run one model at once.
    return key.data_ptr(), threading.get_ident()


_functional_transform: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: None
)
_VECTORS = AccumulatorLayout(num_experts=2).width - AccumulatorLayout(num_experts=1).width
_FIXED_WIDTH = AccumulatorLayout(num_experts=1).width - _VECTORS


def counts_now(handle: int) -> bool:
    """Whether an execution is the first one of its forward, under a tracer that is counting."""
    state = _states.get(handle)
    if state is None or state.paused:
        return False
    return not in_backward() and _functional_transform() is None


def _bin_of(state: TracerState, grad: bool, training: bool) -> Bin | None:
    if _functional_transform() is not None:
        return None  # adding in place to a captured tensor raises there
    if in_backward():
        # Without gradients it is the inner pass of nested reentrant checkpoints. With them it is
        # worth counting only where an undecided NO_GRAD waits for it.
        undecided = grad and training and state.saw_no_grad and not state.named
        return Bin.RECOMPUTED if undecided else None
    if state.named or not training:
        return Bin.OTHER
    if state.skipping:
        return None
    return Bin.FIRST if grad else Bin.NO_GRAD


def _define() -> torch.library.Library:
    library = torch.library.Library("moetrace", "DEF")
    library.define(
        "accumulate(Tensor(a!) accumulator, Tensor? logits_TE, Tensor? topk_expert_ids_TK, "
        "Tensor? topk_weights_TK, Tensor? routing_map_TE, Tensor? mask_T, bool grad, "
        "bool training, int scoring, int handle, Tensor? key=None) -> ()",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    library.define(
        "hold(Tensor(a!) accumulator, Tensor key, Tensor logits_TE, int handle) -> ()",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    for name, body in (("accumulate", count), ("hold", hold)):
        library.impl(name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"moetrace::{name}", lambda *args: None, lib=library)
    return library


def _pass_through_selective_checkpointing() -> None:
    """Let an eager selective checkpoint run a compiled block that holds the operator.

    aot_eager leaves the operator inside a higher-order operator, and PyTorch has no rule for that
    one under the modes of selective checkpointing; it makes such a rule for others in the same way.
    """
    try:
        from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2
        from torch._higher_order_ops.utils import redirect_to_mode
        from torch.utils import checkpoint

        for mode in (checkpoint._CachingTorchDispatchMode, checkpoint._CachedTorchDispatchMode):
            if mode not in auto_functionalized_v2.python_key_table:
                redirect_to_mode(auto_functionalized_v2, mode)
    except (ImportError, AttributeError):
        return  # private names that went away: that one combination fails as it did before


# Library and not the custom_op decorator, which costs five times as much per eager call.
_library = _define()
_pass_through_selective_checkpointing()
accumulate = torch.ops.moetrace.accumulate.default
"""The operator: `count` behind the dispatcher, one node in a compiled graph."""
hold_logits = torch.ops.moetrace.hold.default
"""`hold` behind the dispatcher."""
