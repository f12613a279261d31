"""The accumulate operator as one Triton kernel: reads a forward once, adds to one row in place.

Importing this file imports Triton; `moetrace.ops.fused` does so when the first CUDA tensor arrives.
What is added is what `moetrace.ops.reference.routing_delta` says, with integer atomics alone, so
that the result depends on no order. Sums of reals are formed in float32 and rounded to fixed point
once per program; the number of programs is fixed, so they do not depend on the card either.

A tile is (BT, EP): BT tokens, and the E experts padded to a power of two. Running sums are kept per
place of the tile and folded over its tokens once, at the end.

Each id is compared with the columns of the tile. A histogram would count with fewer instructions,
but not spare the comparison: the margin asks which columns were chosen, and gate weights have to
land in them. Ids and columns are compared as floats, for which one instruction gives 0.0 or 1.0.

Letters: T tokens, E experts, K chosen per token, W = `AccumulatorLayout.width`.
"""

# Triton has no types, and its functions are read by its own compiler and not run as Python.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# pyright: reportMissingImports=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moetrace.layout import FRACTION_BITS, LIMITS, SCALARS, SCORINGS, AccumulatorLayout
from moetrace.ops.reference import FLOOR
from moetrace.routing import Routing

__all__ = ["Launch", "add_routing"]


@dataclass(frozen=True, slots=True)
class Launch:
    """How the work is cut. Every choice gives the same counts; reals differ in the last digits.

    Attributes:
        elements: Logits of one tile, BT times EP; with 4096 of them registers spill to memory.
        programs: The most programs. Two per multiprocessor of a card with 132, on every card.
        warps: Warps of a program.
    """

    elements: int = 2048
    programs: int = 264
    warps: int = 4

    def tile(self, num_experts: int) -> tuple[int, int]:
        """BT and EP.

        >>> Launch().tile(64), Launch().tile(60), Launch().tile(1024)
        ((32, 64), (8, 64), (2, 1024))
        """
        columns = max(16, 1 << (num_experts - 1).bit_length())
        # Rows that are not aligned are loaded one logit a thread, which then holds many rows.
        elements = self.elements if num_experts % 16 == 0 else self.elements // 4
        return max(1, min(128, elements // columns)), columns


DEFAULT = Launch()

_PROB_SCALE = tl.constexpr(float(1 << FRACTION_BITS["prob_sum"]))
_GATE_SCALE = tl.constexpr(float(1 << FRACTION_BITS["gate_weight_sum"]))
_ENTROPY_SCALE = tl.constexpr(float(1 << FRACTION_BITS["entropy_sum"]))
_CONFIDENCE_SCALE = tl.constexpr(float(1 << FRACTION_BITS["confidence_sum"]))
_MARGIN_SCALE = tl.constexpr(float(1 << FRACTION_BITS["margin_sum"]))
_LSE_SCALE = tl.constexpr(float(1 << FRACTION_BITS["lse_sum"]))
_LSE_SQ_SCALE = tl.constexpr(float(1 << FRACTION_BITS["lse_sq_sum"]))
_TOKENS = tl.constexpr(SCALARS.index("tokens"))
_CALLS = tl.constexpr(SCALARS.index("calls"))
_MASKED = tl.constexpr(SCALARS.index("masked"))
_NONFINITE = tl.constexpr(SCALARS.index("nonfinite"))
_ENTROPY = tl.constexpr(SCALARS.index("entropy_sum"))
_CONFIDENCE = tl.constexpr(SCALARS.index("confidence_sum"))
_MARGIN = tl.constexpr(SCALARS.index("margin_sum"))
_LSE = tl.constexpr(SCALARS.index("lse_sum"))
_LSE_SQ = tl.constexpr(SCALARS.index("lse_sq_sum"))
_GATE_LIMIT = tl.constexpr(LIMITS["gate_weight_sum"])
_LSE_LIMIT = tl.constexpr(LIMITS["lse_sum"])
_FLOOR = tl.constexpr(FLOOR)
_INF = tl.constexpr(float("inf"))


def add_routing(
    row_W: Tensor,
    routing: Routing,
    mask_T: Tensor | None,
    num_experts: int,
    scoring: int,
    *,
    launch: Launch = DEFAULT,
) -> None:
    """Add one forward to one row of an accumulator.

    Args:
        row_W: int64, contiguous, on the device of the routing; the only thing written.
        routing: What the router decided, with ids and logits; leading dimensions are flattened.
        mask_T: True where a token is real, ``T`` entries; None where all are.
        num_experts: E, at most 1,024: a row of logits has to fit into the registers of a program.
        scoring: Position in `moetrace.layout.SCORINGS`, of softmax or sigmoid.
        launch: How the work is cut.

    Raises:
        ValueError: The parts of the routing disagree about T: the kernel would read past an end.

    Cost: one launch, no host sync, no allocation unless a last dimension is strided. Reads logits,
    ids, weights and mask once.
    """
    assert routing.topk_expert_ids_TK is not None
    assert routing.logits_TE is not None
    ids_TK = _rows(routing.topk_expert_ids_TK, routing.topk_expert_ids_TK.shape[-1])
    T, K = ids_TK.shape
    logits_TE = _rows(routing.logits_TE, num_experts)
    weights_TK = routing.topk_weights_TK
    if weights_TK is not None:
        weights_TK = _rows(weights_TK, K)
    if mask_T is not None:
        mask_T = mask_T.reshape(-1).contiguous()
        mask_T = (mask_T if mask_T.dtype == torch.bool else mask_T != 0).view(torch.uint8)
    for name, part in (("logits", logits_TE), ("weights", weights_TK), ("mask", mask_T)):
        if part is not None and part.shape[0] != T:
            raise ValueError(f"found {part.shape[0]} tokens in the {name} and {T} in the ids")
    layout = AccumulatorLayout(num_experts)
    BT, EP = launch.tile(num_experts)
    programs = max(1, min(launch.programs, triton.cdiv(T, BT)))  # an empty forward is a call too
    kernel: Any = _accumulate
    with torch.cuda.device_of(row_W):
        kernel[(programs,)](
            row_W,
            logits_TE,
            ids_TK,
            weights_TK,
            mask_T,
            T,
            logits_TE.stride(0),
            ids_TK.stride(0),
            0 if weights_TK is None else weights_TK.stride(0),
            E=num_experts,
            K=K,
            SIGMOID=SCORINGS[scoring] == "sigmoid",
            PROB_SUM=layout.prob_sum,
            GATE_WEIGHT_SUM=layout.gate_weight_sum,
            SCALARS_AT=layout.scalars,
            BT=BT,
            EP=EP,
            num_warps=launch.warps,
        )


def _rows(tensor: Tensor, width: int) -> Tensor:
    """Flattened to ``(T, width)``; a copy only where the last dimension is strided."""
    # -1 is ambiguous where there are no tokens, so that T is computed.
    rows = tensor.detach().reshape(tensor.numel() // width, width)
    return rows if rows.stride(1) == 1 or width == 1 else rows.contiguous()


@triton.jit
def _fixed(real, scale: tl.constexpr):
    return tl.floor(real.to(tl.float64) * scale + 0.5).to(tl.int64)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _add(place, amount, mine):
    tl.atomic_add(place, amount, mask=mine & (amount != 0), sem="relaxed")


@triton.jit(do_not_specialize=["T"])
def _accumulate(
    row,
    logits,
    ids,
    weights,
    mask,
    T,
    logits_stride,
    ids_stride,
    weights_stride,
    E: tl.constexpr,
    K: tl.constexpr,
    SIGMOID: tl.constexpr,
    PROB_SUM: tl.constexpr,
    GATE_WEIGHT_SUM: tl.constexpr,
    SCALARS_AT: tl.constexpr,
    BT: tl.constexpr,
    EP: tl.constexpr,
):
    column = tl.arange(0, EP)
    inside = column < E
    name = column.to(tl.float32)
    counts = tl.zeros((BT, EP), tl.float32)  # whole numbers, far below 2**24
    probs = tl.zeros((BT, EP), tl.float32)
    gates = tl.zeros((BT, EP), tl.float32)
    tokens = tl.zeros((BT,), tl.int32)
    masked = tl.zeros((BT,), tl.int32)
    nonfinite = tl.zeros((BT,), tl.int32)
    entropies = tl.zeros((BT,), tl.float32)
    confidences = tl.zeros((BT,), tl.float32)
    margins = tl.zeros((BT,), tl.float32)
    lses = tl.zeros((BT,), tl.float32)
    lse_sqs = tl.zeros((BT,), tl.float32)

    for start in range(tl.program_id(0) * BT, T, tl.num_programs(0) * BT):
        token = start + tl.arange(0, BT)
        there = token < T
        token = token.to(tl.int64)  # times a stride it can pass 2**31
        real = there
        if mask is not None:
            real = there & (tl.load(mask + token, mask=there, other=0) != 0)

        place = logits + token[:, None] * logits_stride + column[None, :]
        if EP == E:
            x = tl.load(place, mask=there[:, None], other=0.0).to(tl.float32)
        else:
            x = tl.load(place, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
            x = tl.where(inside[None, :], x, -_INF)
        highest = tl.max(x, 1)
        shifted = x - highest[:, None]
        exps = tl.exp(shifted)
        total = tl.sum(exps, 1)
        lse = highest + tl.log(total)
        # The maximum may drop a NaN, the sum never does.
        finite = (tl.abs(highest) < _INF) & (tl.abs(lse) < _INF)
        if SIGMOID:
            shifted = _log_sigmoid(x) - _log_sigmoid(highest)[:, None]
            exps = tl.exp(shifted)
            total = tl.sum(exps, 1)
        log_total = tl.log(total)
        confidence = 1.0 / total
        # 0 * -inf of a masked expert has to be 0; its exponential was taken before the bound.
        entropy = log_total - tl.sum(exps * tl.maximum(shifted, _FLOOR), 1) * confidence
        scored = real & finite
        probs += tl.where(scored[:, None], exps * confidence[:, None], 0.0)

        # Never true. It ties what follows to the layout in which the logits were loaded; without it
        # the compiler takes another one, in which every thread reads all ids of the tile.
        hits = (x > _INF).to(tl.float32)
        gate = hits
        astray = token < 0
        for k in tl.static_range(K):
            expert = tl.load(ids + token * ids_stride + k, mask=there, other=0).to(tl.int64)
            known = expert.to(tl.uint64, bitcast=True) < E
            astray = astray | (known == 0)
            # Column -1 is nobody's: of padding, and of an id that names no expert.
            expert = tl.where(known & real, expert.to(tl.int32), -1).to(tl.float32)
            hit = (expert[:, None] == name[None, :]).to(tl.float32)
            hits += hit
            if weights is not None:
                at = weights + token * weights_stride + k
                weight = tl.load(at, mask=there, other=0.0).to(tl.float32)
                weight = tl.where(weight == weight, weight, 0.0)
                weight = tl.minimum(tl.maximum(weight, -_GATE_LIMIT), _GATE_LIMIT)
                gate += hit * weight[:, None]
        counts += hits
        gates += gate
        if K < E:
            # In the margin an id that names no expert stands for expert 0.
            chosen = (hits > 0) | (astray[:, None] & (column == 0)[None, :])
            lowest_chosen = tl.min(tl.where(chosen, shifted, _INF), 1) - log_total
            highest_left = tl.max(tl.where(chosen, -_INF, shifted), 1) - log_total
            margin = tl.maximum(lowest_chosen, _FLOOR) - tl.maximum(highest_left, _FLOOR)
            margins += tl.where(scored, margin, 0.0)

        lse = tl.minimum(tl.maximum(lse, -_LSE_LIMIT), _LSE_LIMIT)
        tokens += real.to(tl.int32)
        masked += (there & (real == 0)).to(tl.int32)
        nonfinite += (real & (finite == 0)).to(tl.int32)
        entropies += tl.where(scored, entropy, 0.0)
        confidences += tl.where(scored, confidence, 0.0)
        lses += tl.where(scored, lse, 0.0)
        lse_sqs += tl.where(scored, lse * lse, 0.0)

    counted = tl.sum(counts, 0).to(tl.int64)
    _add(row + column, counted, inside)
    _add(row + PROB_SUM + column, _fixed(tl.sum(probs, 0), _PROB_SCALE), inside)
    if weights is not None:
        _add(row + GATE_WEIGHT_SUM + column, _fixed(tl.sum(gates, 0), _GATE_SCALE), inside)
    real_tokens = tl.sum(tokens, 0).to(tl.int64)
    _add(row + E, real_tokens * K - tl.sum(counted, 0), True)
    scalar = row + SCALARS_AT
    _add(scalar + _TOKENS, real_tokens, True)
    _add(scalar + _CALLS, (tl.program_id(0) == 0).to(tl.int64), True)
    _add(scalar + _MASKED, tl.sum(masked, 0).to(tl.int64), True)
    _add(scalar + _NONFINITE, tl.sum(nonfinite, 0).to(tl.int64), True)
    _add(scalar + _ENTROPY, _fixed(tl.sum(entropies, 0), _ENTROPY_SCALE), True)
    _add(scalar + _CONFIDENCE, _fixed(tl.sum(confidences, 0), _CONFIDENCE_SCALE), True)
    _add(scalar + _MARGIN, _fixed(tl.sum(margins, 0), _MARGIN_SCALE), True)
    _add(scalar + _LSE, _fixed(tl.sum(lses, 0), _LSE_SCALE), True)
    _add(scalar + _LSE_SQ, _fixed(tl.sum(lse_sqs, 0), _LSE_SQ_SCALE), True)
