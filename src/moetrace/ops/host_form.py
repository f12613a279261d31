"""What one forward of one router adds to its accumulator, in few and cheap steps on a CPU.

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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moetrace.layout import FRACTION_BITS, LIMITS, SCALARS, SCORINGS, AccumulatorLayout
from moetrace.ops.reference import FLOOR, log_scores
from moetrace.routing import Routing

__all__ = ["host_delta"]

_MOST_EXPERTS = 8192
"""A product of two longer rows would start threads of numpy's own beside those of torch."""

_SCORES_AT_ONCE = 1 << 16
"""Scores per pass, and with them tokens: what one pass makes stays in the cache of a core."""

_MOST_TOKENS = 2048
"""Tokens per pass where experts are few: so many float32 add up without losing a digit."""

_GATE_LIMIT, _LSE_LIMIT = LIMITS["gate_weight_sum"], LIMITS["lse_sum"]
_SOFTMAX = SCORINGS.index("softmax")
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_FLOATS = {torch.bfloat16, torch.float16, torch.float32, torch.float64}

Array = NDArray[Any]


def host_delta(
    routing: Routing, mask_T: Tensor | None, num_experts: int, scoring: int
) -> NDArray[np.int64] | None:
    """The sums of one ordinary forward, shape ``(W,)``; None where it is for the composition.

    Ordinary are ids and logits in plain CPU tensors, with finite scores for every expert and ids
    that name one. Counts are exact. A sum of reals is formed in float32 per token, in float64 over
    tokens (``prob_sum``: in float32 over a pass) and rounded to fixed point once per forward.

    Args:
        routing: What the router decided; leading dimensions are flattened here.
        mask_T: True where a token is real, bool ``(T,)``; None where all are.
        num_experts: E.
        scoring: Position in `moetrace.layout.SCORINGS`.

    Cost: some thirty steps for each 65,536 scores; ``benchmarks/counted_cost.py`` shows the time.
    """
    if not _fits(routing, mask_T, num_experts):
        return None
    ids, logits, weights, _ = routing
    assert ids is not None
    assert logits is not None
    fields = _fields(num_experts)
    sums = np.zeros(len(fields.scales))
    ids_TK = _array(ids)
    if ids_TK.dtype != np.int64:
        ids_TK = ids_TK.astype(np.int64)
    real_T = None if mask_T is None else mask_T.numpy()
    if real_T is not None and real_T.all():
        real_T = None
    weights_TK = None if weights is None else _array(_float32(weights))
    if not _add_choice(sums, fields, ids_TK, weights_TK, real_T):
        return None
    logits_TE = logits if logits.dim() == 2 else logits.reshape(-1, num_experts)
    T = len(ids_TK)
    n = min(_MOST_TOKENS, max(1, _SCORES_AT_ONCE // num_experts))
    for start in range(0, T, n):
        part = slice(start, start + n)
        one = n >= T
        if not _add_scores(
            sums,
            fields,
            ids_TK if one else ids_TK[part],
            logits_TE if one else logits_TE[part],
            real_T if one or real_T is None else real_T[part],
            scoring,
        ):
            return None
    real = T if real_T is None else int(np.count_nonzero(real_T))
    sums[fields.tokens : fields.tokens + 3] = real, 1, T - real
    sums *= fields.scales
    return np.rint(sums, sums).astype(np.int64)


def _fits(routing: Routing, mask_T: Tensor | None, num_experts: int) -> bool:
    ids, logits, weights, routing_map = routing
    if ids is None or logits is None or routing_map is not None or num_experts > _MOST_EXPERTS:
        return False
    if ids.dtype not in _INTEGERS or logits.dtype not in _FLOATS:
        return False
    if not ids.dim() or not ids.numel():
        return False
    T = ids.numel() // ids.shape[-1]
    if logits.numel() != T * num_experts or logits.shape[-1] != num_experts:
        return False
    if weights is not None and (weights.shape != ids.shape or weights.dtype not in _FLOATS):
        return False
    if mask_T is not None and (mask_T.dtype != torch.bool or mask_T.shape != (T,)):
        return False
    return (
        _is_plain(ids)
        and _is_plain(logits)
        and (weights is None or _is_plain(weights))
        and (mask_T is None or _is_plain(mask_T))
    )


def _is_plain(tensor: Tensor) -> bool:
    # A subclass has no numbers of its own; a negated view or one that records gradients no array.
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and not tensor.is_neg()
    )


def _array(tensor: Tensor) -> Array:
    return (tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])).numpy()


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
) -> bool:
    """Add what one pass of tokens scored; False where something in it is not finite."""
    (n, K), E = ids_TK.shape, fields.num_experts
    pad = _take_pad(n, E)
    with np.errstate(all="ignore"):  # what is not finite is found below
        entropies, confidences, margins, lses, squares, logs = pad.rows
        logits = _float32(logits_TE)
        scores = logits if scoring == _SOFTMAX else log_scores(logits, SCORINGS[scoring])
        torch.amax(scores, 1, True, out=pad.highest_T1)
        torch.sub(scores, pad.highest_T1, out=pad.shifted_TE)
        torch.exp(pad.shifted_TE, out=pad.exps_TE)
        exps_TE = pad.exps
        totals_T = _row_dots(exps_TE, pad.ones_E, pad.spare_T)
        np.log(totals_T, logs)
        np.divide(1.0, totals_T, confidences)
        # The entropy of a token is logs minus this; the two are summed apart.
        np.multiply(_row_dots(exps_TE, pad.shifted, entropies), confidences, entropies)
        if scores is logits:
            np.add(pad.highest, logs, lses)
        else:
            lses[:] = logits.logsumexp(1).numpy()
        np.multiply(lses, lses, squares)
        if K < E:
            _margins(pad, ids_TK.T, logs, margins)
        else:
            margins[:] = 0.0
        if real_T is not None:
            pad.reals *= real_T
        # With a tensor to write to a product is none of autocast's.
        torch.mv(pad.exps_ET, pad.confidences_T, out=pad.probs_E)
        entropy, confidence, margin, lse, square, log = np.add.reduce(
            pad.reals, 1, np.float64
        ).tolist()
        # Of NaN and infinity nothing else is true.
        if not (math.isfinite(entropy + log + margin) and square < math.inf):
            return False
        if square > _LSE_LIMIT**2 and np.abs(lses).max() > _LSE_LIMIT:
            return False
    sums[fields.probs] += pad.probs
    sums[fields.reals] += log - entropy, confidence, margin, lse, square
    _give_pad_back(pad)
    return True


def _margins(pad: "_Pad", ids_KT: Array, logs_T: Array, margins_T: Array) -> None:
    """Lowest score chosen minus highest not chosen; overwrites the shifted scores."""
    places_KT = ids_KT + pad.starts_T
    lowest_T = np.minimum.reduce(pad.shifted_flat.take(places_KT))
    pad.shifted_flat[places_KT] = -np.inf
    torch.amax(pad.shifted_TE, 1, out=pad.highest_left_T)
    floor_T = np.add(logs_T, _FLOOR, pad.spare_T)
    np.maximum(lowest_T, floor_T, out=lowest_T)
    np.maximum(pad.highest_left, floor_T, out=floor_T)
    np.subtract(lowest_T, floor_T, margins_T)


_FLOOR = np.float32(FLOOR)
_REALS = SCALARS[SCALARS.index("entropy_sum") :]


class _Fields:
    """Where the sums of a router stand among all, and what makes each one fixed point."""

    def __init__(self, num_experts: int) -> None:
        layout = AccumulatorLayout(num_experts)
        self.num_experts = num_experts
        self.probs = slice(layout.prob_sum, layout.gate_weight_sum)
        self.gates = slice(layout.gate_weight_sum, layout.scalars)
        self.tokens = layout.scalar("tokens")
        self.reals = slice(layout.scalar(_REALS[0]), layout.width)
        self.scales: Array = np.ones(layout.width)
        self.scales[self.probs] = 1 << FRACTION_BITS["prob_sum"]
        self.scales[self.gates] = 1 << FRACTION_BITS["gate_weight_sum"]
        self.scales[self.reals] = [1 << FRACTION_BITS[name] for name in _REALS]


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

    def __init__(self, n: int, num_experts: int) -> None:
        with torch.inference_mode(False):
            self.shifted_TE = torch.empty(n, num_experts, dtype=torch.float32, device="cpu")
            self.exps_TE = torch.empty(n, num_experts, dtype=torch.float32, device="cpu")
            self.highest_T1 = torch.empty(n, 1, dtype=torch.float32, device="cpu")
            self.highest_left_T = torch.empty(n, dtype=torch.float32, device="cpu")
            self.reals_RT = torch.empty(len(_REALS) + 1, n, dtype=torch.float32, device="cpu")
            self.probs_E = torch.empty(num_experts, dtype=torch.float32, device="cpu")
        self.shifted: Array = self.shifted_TE.numpy()
        self.shifted_flat: Array = self.shifted.reshape(-1)
        self.exps: Array = self.exps_TE.numpy()
        self.exps_ET = self.exps_TE.t()
        self.highest: Array = self.highest_T1.numpy().reshape(-1)
        self.highest_left: Array = self.highest_left_T.numpy()
        self.reals: Array = self.reals_RT.numpy()
        self.rows = tuple(self.reals)
        self.confidences_T = self.reals_RT[1]
        self.probs: Array = self.probs_E.numpy()
        self.spare_T: Array = np.empty(n, np.float32)
        self.starts_T: Array = np.arange(0, n * num_experts, num_experts)
        self.ones_E: Array = np.ones(num_experts, np.float32)


class _Pads(threading.local):
    """The pads of one thread that are not in use; the last few sizes."""

    def __init__(self) -> None:
        self.free: dict[tuple[int, int], _Pad] = {}


_MOST_PADS = 8
_pads = _Pads()


def _take_pad(n: int, num_experts: int) -> _Pad:
    return _pads.free.pop((n, num_experts), None) or _Pad(n, num_experts)


def _give_pad_back(pad: _Pad) -> None:
    free = _pads.free
    free[pad.exps.shape] = pad
    if len(free) > _MOST_PADS:
        del free[next(iter(free))]
