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
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moetrace.index_layout import MOST_SCORE, SCORE_BITS, SCORE_SQ_BITS, IndexLayout
from moetrace.ops.backward import in_backward
from moetrace.ops.library import TracerState

__all__ = [
    "IndexState",
    "IndexSums",
    "add_scores",
    "hold_keys",
    "look_up",
    "note_keys",
    "note_lookup",
    "note_scores",
    "register_indices",
]

_MOST_FAILURES = 3

# A squared score from the fixed-point one, in integers, so that every order of additions agrees.
_ROOT_SHIFT = 15
_SQUARE_SHIFT = 2 * (SCORE_BITS - _ROOT_SHIFT) - SCORE_SQ_BITS
_MOST_ROOT = 32 << (SCORE_BITS - _ROOT_SHIFT)


class _Drawn:
    """What a counted look-up drew, until its scores come.

    Attributes:
        ids: Flat ids with those out of range in the overflow bin, numpy on a host, else a tensor;
            padding is left out on a host.
        real_T: Real tokens, or None where all are.
        tokens: Tokens of the look-up, padding included.
    """

    __slots__ = ("ids", "real_T", "tokens")

    def __init__(self, ids: Any, real_T: Any, tokens: int) -> None:
        self.ids, self.real_T, self.tokens = ids, real_T, tokens


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
    """

    def __init__(self, tracer: TracerState) -> None:
        self.tracer = tracer
        self.handle = -1
        self.first: set[int] = set()
        self.no_grad: set[int] = set()
        self.counted = False
        self.failures: dict[int, int] = {}
        self.drawn: dict[tuple[int, int], _Drawn] = {}
        self.keys: dict[tuple[int, int], Tensor] = {}

    def forget_step(self) -> None:
        """The open step is over, however it ended."""
        self.counted = False
        self.first.clear()
        self.no_grad.clear()
        self.drawn.clear()
        self.keys.clear()


class IndexSums:
    """Sums of a table that is told its ids, in place of a hook; draws alone, no scores.

    Args:
        layout: Where each sum stands.
        device: Where the ids are.
    """

    def __init__(self, layout: IndexLayout, device: torch.device) -> None:
        self._layout = layout
        self._tracer = TracerState()
        with torch.inference_mode(False):
            self._sums = torch.zeros(layout.width, dtype=torch.int64, device=device)

    def add(self, ids_TK: Tensor) -> None:
        """Count the ids of T tokens. Cost: as `note_lookup`."""
        _add_draws(self._tracer, self._sums, self._layout, ids_TK.to(self._sums.device), None)

    def read(self) -> NDArray[np.int64]:
        """A copy of the sums on the host; waits for the device."""
        found: NDArray[np.int64] = self._sums.cpu().numpy().copy()
        return found

    def clear(self) -> None:
        """Start from 0 again."""
        self._sums.zero_()


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
        sums: The table's sums of the open step, `moetrace.index_layout`; the only thing written.
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
        drawn = _add_draws(state.tracer, sums, layout, ids, mask_T)
        if rule == 1:
            state.drawn[place] = drawn
        elif held is not None:
            scores = _of_sub_keys(held.to(sums.device), ids, rule)
            _add(state.tracer, sums, layout, drawn, scores)
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
        _add(state.tracer, sums, layout, drawn, scores.to(sums.device))
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
    if state.failures.get(table, 0) >= _MOST_FAILURES or tracer.named or not training:
        return False
    if in_backward():
        if not grad or table in state.first or table not in state.no_grad:
            return False
    elif tracer.skipping:
        return False
    elif not grad:
        state.no_grad.add(table)
        return False
    else:
        state.first.add(table)
    state.counted = tracer.saw_first = True
    return True


def _fail(state: IndexState, table: int, error: Exception) -> None:
    state.tracer.errors[f"{type(error).__name__}: {error}"] += 1
    state.failures[table] = state.failures.get(table, 0) + 1


def _place(key: Tensor) -> tuple[int, int]:
    # Its own thread's: two threads may run one model at once.
    return key.data_ptr(), threading.get_ident()


def _on_host(sums: Tensor) -> bool:
    return sums.is_cpu


def _tokens_of(ids: Tensor) -> int:
    """Tokens of a look-up: all that stands before K, or before the heads and K."""
    if ids.dim() < 2:
        return ids.numel()
    return ids.shape[:-1].numel() if ids.dim() < 4 else ids.shape[:-2].numel()


def _real(tracer: TracerState, mask_T: Tensor | None, tokens: int) -> Tensor | None:
    if mask_T is None:
        return None
    if mask_T.numel() != tokens:
        tracer.misfits += 1
        return None
    return mask_T.reshape(-1)


def _add_draws(
    tracer: TracerState, sums: Tensor, layout: IndexLayout, ids: Tensor, mask_T: Tensor | None
) -> _Drawn:
    tokens = _tokens_of(ids)
    real_T = _real(tracer, mask_T, tokens)
    if _on_host(sums):
        flat = ids.detach().numpy().reshape(tokens, -1)
        real = None if real_T is None else real_T.cpu().numpy()
        if real is not None:
            flat = flat[real]
        # A copy in any case: the block may go on to write where its ids stand.
        drawn = flat.reshape(-1).astype(np.int64)
        if drawn.size and not 0 <= drawn.min() <= drawn.max() < layout.num_experts:
            drawn[(drawn < 0) | (drawn >= layout.num_experts)] = layout.num_experts
        there = len(flat)
        with tracer.lock:
            host: NDArray[np.int64] = sums.numpy()
            np.add.at(host[: layout.num_experts + 1], drawn, 1)
            host[layout.scalar("tokens")] += there
            host[layout.scalar("calls")] += 1
            host[layout.scalar("masked")] += tokens - there
        return _Drawn(drawn, real, tokens)
    with torch.no_grad():
        experts = layout.num_experts
        flat_M = ids.reshape(-1).to(torch.int64)
        drawn_M = torch.where((flat_M >= 0) & (flat_M < experts), flat_M, experts)
        one = torch.ones((), dtype=torch.int64, device=sums.device)
        if real_T is None:
            weight_M, there_T = one.expand_as(drawn_M), one * tokens
        else:
            real_T = real_T.to(sums.device)
            each = drawn_M.numel() // max(1, tokens)
            weight_M = real_T.to(torch.int64).unsqueeze(1).expand(tokens, each).reshape(-1)
            there_T = real_T.sum()
        with tracer.lock:
            sums[: experts + 1].index_add_(0, drawn_M, weight_M)
            noted = torch.stack([there_T, one, tokens - there_T])
            sums[layout.scalars : layout.scalars + 3].add_(noted)
        return _Drawn(drawn_M, None if real_T is None else weight_M, tokens)


def _add(
    tracer: TracerState, sums: Tensor, layout: IndexLayout, drawn: _Drawn, scores: Tensor
) -> None:
    start = layout.score_sum
    if _on_host(sums):
        kept = scores.detach()
        kept = kept.float() if kept.dtype in (torch.bfloat16, torch.float16) else kept
        flat = kept.numpy().reshape(drawn.tokens, -1)
        if drawn.real_T is not None:
            flat = flat[drawn.real_T]
        scored, bad = flat.reshape(-1), 0
        # NaN fails every comparison, so that scores as they should be cost two passes here.
        if scored.size and not 0.0 <= scored.min() <= scored.max() <= MOST_SCORE:
            finite = np.isfinite(scored)
            bad = int(scored.size - np.count_nonzero(finite))
            scored = np.clip(np.where(finite, scored, 0), 0.0, MOST_SCORE)
        fixed = scored * scored.dtype.type(1 << SCORE_BITS)
        fixed = np.rint(fixed, out=fixed).astype(np.int64)
        root = np.minimum(fixed >> _ROOT_SHIFT, _MOST_ROOT)
        with tracer.lock:
            host: NDArray[np.int64] = sums.numpy()
            np.add.at(host[start : start + layout.num_experts + 1], drawn.ids, fixed)
            host[layout.scalar("nonfinite")] += bad
            host[layout.scalar("score_sq_sum")] += int(root @ root) >> _SQUARE_SHIFT
        return
    with torch.no_grad():
        flat_M = scores.reshape(-1)
        flat_M = flat_M if flat_M.dtype == torch.float64 else flat_M.float()
        finite_M = torch.isfinite(flat_M)
        clamped_M = torch.where(finite_M, flat_M, 0.0).clamp(0.0, MOST_SCORE)
        fixed_M = (clamped_M * float(1 << SCORE_BITS)).round().to(torch.int64)
        bad_M = (~finite_M).to(torch.int64)
        if drawn.real_T is not None:
            fixed_M, bad_M = fixed_M * drawn.real_T, bad_M * drawn.real_T
        root_M = (fixed_M >> _ROOT_SHIFT).clamp_max(_MOST_ROOT)
        square = root_M.square().sum() >> _SQUARE_SHIFT
        with tracer.lock:
            sums[start : start + layout.num_experts + 1].index_add_(0, drawn.ids, fixed_M)
            at = layout.scalar("nonfinite")
            sums[at : at + 2].add_(torch.stack([bad_M.sum(), square]))


def _of_sub_keys(keys: Tensor, ids: Tensor, n: int) -> Tensor:
    """Softmax over the chosen K of the sums of their two sub-keys' scores.

    Source: DogeCDMoE of transformers 5.23, which splits what its gate returns into halves of the
    whole batch, ``view(2, T, n)``.
    """
    ids_TK = ids.reshape(-1, ids.shape[-1]).to(torch.int64).clamp(0, n * n - 1)
    keys_2Tn = keys.reshape(2, ids_TK.shape[0], n)
    summed_TK = keys_2Tn[0].gather(1, ids_TK // n) + keys_2Tn[1].gather(1, ids_TK % n)
    return torch.softmax(summed_TK, dim=-1)


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
