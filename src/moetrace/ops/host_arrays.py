"""What one forward of one router adds to its accumulator, where no kernel for a CPU was compiled.

The form for the ordinary forward; `moetrace.ops.reference` takes all others and says what this one
must equal. On small inputs a step costs more for being called than for what it computes, so there
are few of them: torch where a step runs over ``(T, E)``, and numpy, which has no dispatcher, for
what is left. A CPU may look at its numbers, so nothing is prepared for rare values: sums are formed
as if there were none, and a bad one shows in them. Letters: T tokens, E experts, K chosen.
"""

import math
import threading
from collections.abc import Callable
from functools import lru_cache
from operator import add
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moetrace.layout import FRACTION_BITS, LIMITS, SCALARS, SCORINGS, AccumulatorLayout
from moetrace.ops.reference import log_scores
from moetrace.routing import Routing

__all__ = ["array_delta"]

_MOST_EXPERTS = 8192
"""A product of two longer rows would start threads of numpy's own beside those of torch."""

_SCORES_AT_ONCE = 1 << 16
"""Scores per pass, and with them tokens: what one pass makes stays in the cache of a core."""

_MOST_TOKENS = 2048
"""Tokens per pass where experts are few: so many float32 add up without losing a digit."""

_LOWEST, _HIGHEST = math.exp(-16.0), math.exp(16.0)
"""Where a sum of exponentials has to lie, or the scores are shifted by the highest of their token.

Within, the logarithm of a probability is exact to 2e-6.
"""

_SMALLEST = 1e-37
"""Below it float32 has fewer digits, and no logarithm is taken."""

_GATE_LIMIT, _LSE_LIMIT = LIMITS["gate_weight_sum"], LIMITS["lse_sum"]
_SOFTMAX = SCORINGS.index("softmax")
_FLOATS = {torch.bfloat16, torch.float16, torch.float32, torch.float64}

Array = NDArray[Any]


def array_delta(
    routing: Routing, mask_T: Tensor | None, num_experts: int, scoring: int
) -> NDArray[np.int64] | None:
    """The sums of one ordinary forward, shape ``(W,)``; None where it is for the composition.

    Ordinary are ids and logits in plain CPU tensors, with finite scores for every expert and ids
    that name one, where no expert chosen and no best one left has less than e**-60 of a token's
    probability. Counts are exact. A sum of reals is formed in float32 over the tokens of a pass, in
    float64 over passes, and rounded to fixed point once per forward.

    Args:
        routing: What the router decided; leading dimensions are flattened here.
        mask_T: True where a token is real, bool ``(T,)``; None where all are.
        num_experts: E.
        scoring: Position in `moetrace.layout.SCORINGS`.

    Cost: some thirty steps for each 65,536 scores; ``benchmarks/counted_cost.py`` shows the time.
    """
    try:
        return _delta(routing, mask_T, num_experts, scoring)
    except (IndexError, RuntimeError, TypeError):
        # What records gradients, is sparse or a negated view is no array, and says so by itself; to
        # ask each part beforehand takes 3 us.
        return None


def _delta(
    routing: Routing, mask_T: Tensor | None, num_experts: int, scoring: int
) -> NDArray[np.int64] | None:
    ids, logits, weights, routing_map = routing
    if routing_map is not None or num_experts > _MOST_EXPERTS:
        return None
    if not (_is_plain(ids) and _is_plain(logits) and logits.dtype in _FLOATS):
        return None
    ids_TK = _rows(ids.numpy())
    T = real = len(ids_TK)
    logits_TE = logits if logits.dim() == 2 else logits.reshape(-1, logits.shape[-1])
    if not ids_TK.size or ids_TK.dtype.kind not in "iu" or logits_TE.shape != (T, num_experts):
        return None
    if ids_TK.dtype != np.int64:
        ids_TK = ids_TK.astype(np.int64)
    weights_TK = real_T = None
    if weights is not None:
        if not _is_plain(weights) or weights.dtype not in _FLOATS:
            return None
        weights_TK = _rows(_float32(weights).numpy())
        if weights_TK.shape != ids_TK.shape:
            return None
    if mask_T is not None:
        if not _is_plain(mask_T):
            return None
        real_T = mask_T.numpy()
        if real_T.dtype != np.bool_ or real_T.shape != (T,):
            return None
        real = int(np.count_nonzero(real_T))
        if real == T:
            real_T = None
    fields = _fields(num_experts)
    sums = np.zeros(len(fields.scales))
    if not _add_choice(sums, fields, ids_TK, weights_TK, real_T):
        return None
    reals = (0.0,) * len(_REALS)
    n = min(_MOST_TOKENS, max(1, _SCORES_AT_ONCE // num_experts))
    for start in range(0, T, n):
        if n < T:
            part = slice(start, start + n)
            real_n = None if real_T is None else real_T[part]
            found = _add_scores(sums, fields, ids_TK[part], logits_TE[part], real_n, scoring)
        else:
            found = _add_scores(sums, fields, ids_TK, logits_TE, real_T, scoring)
        if found is None:
            return None
        reals = tuple(map(add, reals, found))
    sums[fields.scalars] = real, 1, T - real, 0, 0, *reals
    sums *= fields.scales
    return np.rint(sums, sums).astype(np.int64)


def _is_plain(tensor: Tensor | None) -> TypeGuard[Tensor]:
    # A subclass has no numbers of its own.
    return type(tensor) is Tensor and tensor.is_cpu


def _rows(array: Array) -> Array:
    return array if array.ndim == 2 else array.reshape(-1, array.shape[-1])


def _float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is torch.float32 else tensor.float()


def _add_choice(
    sums: Array,
    fields: "_Fields",
    ids_TK: Array,
    weights_TK: Array | None,
    real_T: Array | None,
) -> bool:
    """Add counts and gate weights; False where an id or a weight is out of its bounds."""
    E = fields.num_experts
    ids = ids_TK.reshape(-1)
    # Read without its sign a negative id is a huge one. The position of the largest is asked for
    # and not its value, since that takes a reduction, whose start costs more than its work.
    unsigned = ids.view(np.uint64)
    if unsigned.item(unsigned.argmax()) >= E:
        return False
    if real_T is not None:  # padding goes to the overflow bin, which is empty here
        ids = np.where(real_T[:, None], ids_TK, E).reshape(-1)
    sums[:E] = np.bincount(ids, None, E + 1)[:E]
    if weights_TK is not None:
        weights = weights_TK.reshape(-1)
        highest, lowest = weights.item(weights.argmax()), weights.item(weights.argmin())
        if not (lowest >= -_GATE_LIMIT and highest <= _GATE_LIMIT):  # not so for a NaN either
            return False
        sums[fields.gates] = np.bincount(ids, weights, E + 1)[:E]
    return True


def _add_scores(
    sums: Array,
    fields: "_Fields",
    ids_TK: Array,
    logits_TE: Tensor,
    real_T: Array | None,
    scoring: int,
) -> tuple[float, float, float, float, float] | None:
    """Add the probabilities of one pass of tokens and return its sums of reals.

    None where something in it is not finite or out of its bounds.
    """
    (n, K), E = ids_TK.shape, fields.num_experts
    pad = _take_pad(n, E, K)
    logits = _float32(logits_TE)
    scores = logits if scoring == _SOFTMAX else log_scores(logits, SCORINGS[scoring])
    real = pad.ones_T if real_T is None else real_T.astype(np.float32)
    with np.errstate(all="ignore"):  # what is not finite is found below
        totals = _exponentials(pad, scores)
        near = totals.item(totals.argmin()) > _LOWEST and totals.item(totals.argmax()) < _HIGHEST
        if not near:
            torch.amax(scores, 1, True, out=pad.peaks_T1)
            scores = scores - pad.peaks_T1
            _exponentials(pad, scores)
        _row_dots(pad.exps, scores.numpy(), pad.dots)
        np.divide(real, totals, pad.inverses)
        # With a tensor to write to a product is none of autocast's.
        torch.mv(pad.exps_ET, pad.inverses_T, out=pad.probs_E)
        _find_ends(pad, ids_TK.T if K < E else None)
        if not pad.ends.item(pad.ends.argmin()) > _SMALLEST:
            return None
        logs = np.log(pad.to_log, pad.to_log)[:n]
        if near and scores is logits:
            lses = logs
        elif scoring == _SOFTMAX:
            lses = logs + pad.peaks
        else:
            lses = logits.logsumexp(1).numpy()
        np.multiply(lses, lses, pad.squares)
        # The entropy of a token is its log minus its product of scores and probabilities.
        dot, confidence = pad.per_total.dot(pad.inverses).tolist()
        log, lowest, left, square = pad.per_token.dot(real).tolist()
        lse = log if lses is logs else lses.dot(real).item()
    # Of NaN and infinity nothing else is true.
    if not (math.isfinite(log + dot + confidence) and square < math.inf):
        return None
    if square > _LSE_LIMIT**2 and np.abs(lses).max() > _LSE_LIMIT:
        return None
    sums[fields.probs] += pad.probs
    _give_pad_back(pad)
    return max(0.0, log - dot), confidence, lowest - left, lse, square


def _exponentials(pad: "_Pad", scores_TE: Tensor) -> Array:
    torch.exp(scores_TE, out=pad.exps_TE)
    return _row_dots(pad.exps, pad.ones_E, pad.totals)


def _find_ends(pad: "_Pad", ids_KT: Array | None) -> None:
    """The lowest score chosen, the highest left and the highest of all, as exponentials.

    Overwrites those of the chosen. Where all are (None) the first two are the same.
    """
    if ids_KT is None:
        torch.amax(pad.exps_TE, 1, out=pad.left_T)
        pad.highest[:] = pad.lowest[:] = pad.left
        return
    places_KT = np.add(ids_KT, pad.starts_T, pad.places_KT)
    # Clipping is the mode that writes straight to where it should; no id is out of range here.
    chosen_KT = pad.exps_flat.take(places_KT, None, pad.chosen_KT, "clip")
    np.minimum.reduce(chosen_KT, 0, None, pad.lowest)
    np.maximum.reduce(chosen_KT, 0, None, pad.highest)
    pad.exps_flat[places_KT] = 0.0
    torch.amax(pad.exps_TE, 1, out=pad.left_T)
    np.maximum(pad.highest, pad.left, out=pad.highest)


_REALS = SCALARS[SCALARS.index("entropy_sum") :]


class _Fields:
    """Where the sums of a router stand among all, and what makes each one fixed point."""

    def __init__(self, num_experts: int) -> None:
        layout = AccumulatorLayout(num_experts)
        self.num_experts = num_experts
        self.probs = slice(layout.prob_sum, layout.gate_weight_sum)
        self.gates = slice(layout.gate_weight_sum, layout.scalars)
        self.scalars = slice(layout.scalars, layout.width)
        self.scales: Array = np.ones(layout.width)
        self.scales[self.probs] = 1 << FRACTION_BITS["prob_sum"]
        self.scales[self.gates] = 1 << FRACTION_BITS["gate_weight_sum"]
        self.scales[-len(_REALS) :] = [1 << FRACTION_BITS[name] for name in _REALS]


_fields = lru_cache(maxsize=64)(_Fields)


def _einsum_row_dots(left_TE: Array, right: Array, out_T: Array) -> Array:
    subscripts = "te,e->t" if right.ndim == 1 else "te,te->t"
    return np.einsum(subscripts, left_TE, right, out=out_T)


# numpy has it since 2.0.
_row_dots: Callable[[Array, Array, Array], Array] = getattr(np, "vecdot", _einsum_row_dots)


class _Pad:
    """Memory for one pass, as torch and numpy see it: a view of it costs as much as a step.

    Made outside of inference mode, so that any later forward may write to it.
    """

    def __init__(self, n: int, num_experts: int, top_k: int) -> None:
        with torch.inference_mode(False):
            self.exps_TE = torch.empty(n, num_experts, dtype=torch.float32, device="cpu")
            self.peaks_T1 = torch.empty(n, 1, dtype=torch.float32, device="cpu")
            self.probs_E = torch.empty(num_experts, dtype=torch.float32, device="cpu")
            rows_RT = torch.empty(7, n, dtype=torch.float32, device="cpu")
        self.size = n, num_experts, top_k
        self.exps: Array = self.exps_TE.numpy()
        self.exps_flat: Array = self.exps.reshape(-1)
        self.exps_ET = self.exps_TE.t()
        self.peaks: Array = self.peaks_T1.numpy().reshape(-1)
        self.probs: Array = self.probs_E.numpy()
        rows: Array = rows_RT.numpy()
        self.dots, self.highest, self.totals, self.lowest, self.left, self.squares, _ = rows
        self.left_T, self.inverses, self.inverses_T = rows_RT[4], rows[6], rows_RT[6]
        self.per_total, self.per_token = rows[:2], rows[2:6]
        self.to_log, self.ends = rows[2:5].reshape(-1), rows[3:5].reshape(-1)
        self.places_KT: Array = np.empty((top_k, n), np.int64)
        self.chosen_KT: Array = np.empty((top_k, n), np.float32)
        self.starts_T: Array = np.arange(0, n * num_experts, num_experts)
        self.ones_E: Array = np.ones(num_experts, np.float32)
        self.ones_T: Array = np.ones(n, np.float32)


class _Pads(threading.local):
    """The pads of one thread that are not in use; the last few sizes."""

    def __init__(self) -> None:
        self.free: dict[tuple[int, int, int], _Pad] = {}


_MOST_PADS = 8
_pads = _Pads()


def _take_pad(n: int, num_experts: int, top_k: int) -> _Pad:
    return _pads.free.pop((n, num_experts, top_k), None) or _Pad(n, num_experts, top_k)


def _give_pad_back(pad: _Pad) -> None:
    free = _pads.free
    free[pad.size] = pad
    if len(free) > _MOST_PADS:
        del free[next(iter(free))]
