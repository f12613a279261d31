"""The index operators: which rows of a table of experts were looked up, and with what score.

Like `moetrace.ops.library`, but for a million experts: one row of sums per table and none per kind
of execution, so that an execution has to know at once whether it counts. With gradients it does.
Without them in train mode it is a rollout or the first pass of a reentrant checkpoint, and does
not: the recomputation of the latter, inside the backward and with gradients, is counted in its
place. A recomputation whose first pass had gradients is not.
"""

import itertools
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moetrace.index_layout import IndexLayout
from moetrace.ops.backward import in_backward
from moetrace.ops.index_sums import Drawn, add_draws, add_scored, most_added, of_sub_keys
from moetrace.ops.library import TracerState
from moetrace.ops.table_sums import MOST_IN_STEP, zeros

__all__ = [
    "IndexState",
    "add_scores",
    "hold_keys",
    "look_up",
    "note_keys",
    "note_lookup",
    "note_scores",
    "register_indices",
]

_MOST_FAILURES = 3


class IndexState:
    """What the hooks and operators of one tracer's tables share.

    Args:
        tracer: State of the tracer: whether it counts, and which phase is open.

    Attributes:
        handle: Number of this state in the registry.
        first, no_grad: Tables that were looked up in the open step, outside of a backward, with and
            without gradients.
        counted: Whether something was counted in the open step.
        drawn: Look-ups whose scores are still to come.
        keys: Scores of the sub-keys, until the look-up of the same forward.
        most: What the open step may have added to one count at most, by table.
        surplus: Counts of the look-ups of the open step that the table's own have no room for.
        seen: Look-ups so far, by table and by what became of them: ``"counted"``, ``"outside"`` of
            the training (evaluation, a phase of the user's), or without ``"gradients"``. A
            replayed CUDA graph adds none.
    """

    def __init__(self, tracer: TracerState) -> None:
        self.tracer = tracer
        self.handle = -1
        self.first: set[int] = set()
        self.no_grad: set[int] = set()
        self.counted = False
        self.failures: dict[int, int] = {}
        self.drawn: dict[tuple[int, int], Drawn] = {}
        self.keys: dict[tuple[int, int], Tensor] = {}
        self.most: dict[int, int] = {}
        self.surplus: dict[int, Tensor] = {}
        self.seen: Counter[tuple[int, str]] = Counter()

    def forget_step(self) -> None:
        """The open step is over, however it ended."""
        self.counted = False
        self.first.clear()
        self.no_grad.clear()
        self.drawn.clear()
        self.keys.clear()
        self.most.clear()
        self.surplus.clear()


_states: weakref.WeakValueDictionary[int, IndexState] = weakref.WeakValueDictionary()
_handles = itertools.count()
# A forked child (a DataLoader worker) inherits the hooks; it must not count into its parent's run.
os.register_at_fork(after_in_child=_states.clear)


def register_indices(state: IndexState) -> int:
    """Give the state a handle, under which the operators find it while it lives."""
    state.handle = next(_handles)
    _states[state.handle] = state
    return state.handle


def note_lookup(
    sums: Tensor,
    key: Tensor,
    ids: Tensor,
    mask_T: Tensor | None,
    grad: bool,
    training: bool,
    num_experts: int,
    rule: int,
    handle: int,
) -> None:
    """Body of the operator: decide whether this look-up counts, and add it.

    Never raises an ``Exception``, never synchronises with a device, draws no random number. After
    three failures in a row the table stops counting.

    Args:
        sums: The table's sums, `moetrace.index_layout`; the only thing written but in a step of
            more draws than they surely hold.
        key: Names the table by its address.
        ids: Expert ids, ``(..., K)``, or ``(..., H, K)`` from four dimensions on.
        mask_T: Real tokens, or None.
        grad: Grad mode as the hook saw it.
        training: ``module.training`` of the table.
        num_experts: E, from which all else in ``sums`` has its place.
        rule: Where scores come from: 0 nowhere, 1 `note_scores` later, n > 1 `note_keys` before,
            of n sub-keys a side.
        handle: Number of the state.

    Cost: on a CPU one pass over the ids; elsewhere some six operations, fifteen with scores.
    """
    state = _states.get(handle)
    if state is None or state.tracer.paused or _functional_transform() is not None:
        return
    place = _place(key)
    held = state.keys.pop(place, None)
    if not _counts(state, place[0], grad=grad, training=training) or ids.is_meta:
        return
    try:
        layout = IndexLayout(num_experts, scored=rule != 0)
        if ids.device != sums.device:
            state.tracer.misplaced = True
            ids = ids.to(sums.device)
        room = _room(state, place[0], sums, layout, most_added(ids))
        drawn = add_draws(state.tracer, room, layout, ids, mask_T)
        if rule == 1:
            state.drawn[place] = drawn
        elif held is not None:
            scores = of_sub_keys(held.to(sums.device), ids, rule)
            add_scored(state.tracer, sums, layout, drawn, scores)
    except Exception as error:
        _fail(state, place[0], error)
    else:
        state.failures.pop(place[0], None)


def note_scores(sums: Tensor, key: Tensor, scores: Tensor, num_experts: int, handle: int) -> None:
    """Body of the operator: add the scores of the look-up that was counted just before.

    Args:
        sums: As in `note_lookup`.
        key: Names the table.
        scores: One for each of its ids, in their order.
        num_experts: E.
        handle: Number of the state.
    """
    state = _states.get(handle)
    if state is None:
        return
    place = _place(key)
    drawn = state.drawn.pop(place, None)
    if drawn is None or scores.is_meta or state.tracer.paused:
        return
    try:
        layout = IndexLayout(num_experts, scored=True)
        add_scored(state.tracer, sums, layout, drawn, scores.to(sums.device))
    except Exception as error:
        _fail(state, place[0], error)


def note_keys(sums: Tensor, key: Tensor, scores: Tensor, handle: int) -> None:
    """Body of the operator: keep the scores of all sub-keys for the look-up of the same forward.

    Args:
        sums: As in `note_lookup`; declared as written, so that this stays before it.
        key: Names the table.
        scores: What the gate returned, ``(..., 2 n)`` for n sub-keys a side.
        handle: Number of the state.

    Cost: one copy of the scores.
    """
    state = _states.get(handle)
    if state is None or state.tracer.paused or scores.is_meta:
        return
    if _functional_transform() is None:
        with torch.no_grad():
            state.keys[_place(key)] = scores.clone()


def _counts(state: IndexState, table: int, *, grad: bool, training: bool) -> bool:
    tracer = state.tracer
    if state.failures.get(table, 0) >= _MOST_FAILURES:
        return False
    if tracer.named or not training:
        state.seen[table, "outside"] += 1
        return False
    if in_backward():
        if not grad or table in state.first or table not in state.no_grad:
            return False
    elif tracer.skipping:
        return False
    elif not grad:
        state.no_grad.add(table)
        state.seen[table, "gradients"] += 1
        return False
    else:
        state.first.add(table)
    state.seen[table, "counted"] += 1
    state.counted = tracer.saw_first = True
    return True


def _room(state: IndexState, table: int, sums: Tensor, layout: IndexLayout, more: int) -> Tensor:
    """Where ``more`` draws have room: the table's sums, or what stands beside them in this step."""
    most = state.most.get(table, 0) + more
    if most > MOST_IN_STEP:
        if table not in state.surplus:
            state.surplus[table] = zeros(layout.counts, sums.device)
        return state.surplus[table]
    state.most[table] = most
    return sums


def _fail(state: IndexState, table: int, error: Exception) -> None:
    state.tracer.errors[f"{type(error).__name__}: {error}"] += 1
    state.failures[table] = state.failures.get(table, 0) + 1


def _place(key: Tensor) -> tuple[int, int]:
    # Its own thread's: two threads may run one model at once.
    return key.data_ptr(), threading.get_ident()


_functional_transform: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: None
)


def _define() -> torch.library.Library:
    library = torch.library.Library("moetrace", "FRAGMENT")
    tags = (torch.Tag.pt2_compliant_tag,)
    schemas = (
        (
            "look_up",
            note_lookup,
            (
                "Tensor(a!) sums, Tensor key, Tensor ids, Tensor? mask_T, bool grad, "
                "bool training, int num_experts, int rule, int handle"
            ),
        ),
        (
            "add_scores",
            note_scores,
            "Tensor(a!) sums, Tensor key, Tensor scores, int num_experts, int handle",
        ),
        ("hold_keys", note_keys, "Tensor(a!) sums, Tensor key, Tensor scores, int handle"),
    )
    for name, body, schema in schemas:
        library.define(f"{name}({schema}) -> ()", tags=tags)
        library.impl(name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"moetrace::{name}", lambda *args: None, lib=library)
    return library


_library = _define()
look_up = torch.ops.moetrace.look_up.default
"""`note_lookup` behind the dispatcher."""
add_scores = torch.ops.moetrace.add_scores.default
"""`note_scores` behind the dispatcher."""
hold_keys = torch.ops.moetrace.hold_keys.default
"""`note_keys` behind the dispatcher."""
