"""What one forward of one router adds to its accumulator, as a composition of torch operations.

It runs on the CPU and wherever there is no fused kernel, and says what every other form of the
operator must equal. Letters: T tokens, E experts, K chosen per token,
W = `AccumulatorLayout.width`.

No value is read back to the host, no shape depends on data, and no operation is used that CUDA
refuses or serialises in deterministic mode for its own sake (``bincount``, ``histc``, ``nonzero``).
"""

import functools

import torch
from torch import Tensor

from moetrace.layout import FRACTION_BITS, LIMITS, SCALARS
from moetrace.routing import Routing

__all__ = ["FLOOR", "SCORINGS", "routing_delta"]

SCORINGS = ("softmax", "sigmoid")
"""How logits become probabilities; the operator takes the position in this tuple."""

FLOOR = -200.0
"""Log probabilities are bounded from below, so that p log p of a masked expert is 0 and not NaN."""

_REALS = SCALARS[SCALARS.index("entropy_sum") :]
_LIMIT = LIMITS["lse_sum"]


def routing_delta(
    routing: Routing, mask_T: Tensor | None, num_experts: int, scoring: int
) -> Tensor:
    """The sums of one forward, shape ``(W,)``, int64, on the device of the ids.

    Counts are exact. A sum of reals is formed in float32 over the tokens of this forward (per token
    for the scalars, as one product for ``prob_sum``) and rounded to fixed point once.

    Args:
        routing: What the router decided; leading dimensions are flattened here.
        mask_T: True where a token is real, shape ``(T,)``; None where all are.
        num_experts: E.
        scoring: Position in `SCORINGS`.

    Cost: about 50 small operations, the largest over ``(T, E)``; no host sync.
    """
    ids_TK = routing.topk_expert_ids_TK.reshape(-1, routing.topk_expert_ids_TK.shape[-1]).long()
    T, K = ids_TK.shape
    # An id outside [0, E) goes to the overflow bin E before any indexed operation sees it: on CUDA
    # it would be a device-side assert that kills the process.
    in_range_TK = (ids_TK >= 0) & (ids_TK < num_experts)
    bins = torch.where(in_range_TK, ids_TK, num_experts).view(-1)
    real_T = torch.ones_like(ids_TK[:, 0]) if mask_T is None else mask_T.long()
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=ids_TK.device)
    counts.scatter_add_(0, bins, real_T[:, None].expand(T, K).reshape(-1))
    gates = _gate_weights(routing.topk_weights_TK, in_range_TK, real_T, bins, num_experts)
    tokens = real_T.sum()
    calls = torch.ones_like(tokens)
    if routing.logits_TE is None:
        probs, nonfinite = torch.zeros_like(gates), torch.zeros_like(tokens)
        reals = counts.new_zeros(len(_REALS))
    else:
        logits_TE = routing.logits_TE.reshape(-1, num_experts).float()
        safe_ids_TK = torch.where(in_range_TK, ids_TK, 0)
        probs, nonfinite, reals = _scores(logits_TE, safe_ids_TK, real_T, scoring)
    head = torch.stack((tokens, calls, T * calls - tokens, torch.zeros_like(calls), nonfinite))
    return torch.cat((counts, probs, gates, head, reals))


def _gate_weights(
    weights_TK: Tensor | None, in_range_TK: Tensor, real_T: Tensor, bins: Tensor, num_experts: int
) -> Tensor:
    gates = torch.zeros(num_experts + 1, dtype=torch.int64, device=bins.device)
    if weights_TK is not None:
        weights = weights_TK.reshape(in_range_TK.shape).double().nan_to_num(0.0, _LIMIT, -_LIMIT)
        fixed = weights.clamp(-_LIMIT, _LIMIT).mul_(1 << FRACTION_BITS["gate_weight_sum"]).round_()
        gates.scatter_add_(0, bins, (fixed.long() * real_T[:, None]).view(-1))
    return gates[:num_experts]


def _scores(
    logits_TE: Tensor, ids_TK: Tensor, real_T: Tensor, scoring: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Probability sums ``(E,)``, nonfinite tokens ``()`` and the sums of `_REALS` ``(5,)``."""
    highest_T = logits_TE.amax(1)
    if SCORINGS[scoring] == "softmax":
        logp_TE = logits_TE.log_softmax(1)
        lse_T = highest_T - logp_TE.amax(1)
    else:
        logp_TE = torch.nn.functional.logsigmoid(logits_TE)
        logp_TE = logp_TE - logp_TE.logsumexp(1, keepdim=True)
        lse_T = logits_TE.logsumexp(1)
    # fmax, not clamp: it turns the NaN of a non-finite row into the floor, so that the row adds 0.
    logp_TE = torch.fmax(logp_TE, logp_TE.new_full((), FLOOR))
    probs_TE = logp_TE.exp()
    entropy_T = -(probs_TE * logp_TE).sum(1)
    confidence_T = logp_TE.amax(1).exp()
    finite_T = highest_T.isfinite() & (lse_T.abs() < float("inf"))
    scored_T = finite_T & (real_T > 0)
    sums_E = scored_T.float() @ probs_TE
    margin_T = _margin(logp_TE, ids_TK)
    lse_T = lse_T.clamp(-_LIMIT, _LIMIT)
    reals = torch.stack((entropy_T, confidence_T, margin_T, lse_T, lse_T * lse_T))
    reals = torch.where(scored_T, reals, 0.0).double() * _scales(reals.device)
    nonfinite = real_T.sum() - scored_T.sum()
    fixed_E = sums_E.double().mul_(1 << FRACTION_BITS["prob_sum"]).round_().long()
    return fixed_E, nonfinite, reals.round_().long().sum(1)


def _margin(logp_TE: Tensor, ids_TK: Tensor) -> Tensor:
    if ids_TK.shape[1] >= logp_TE.shape[1]:
        return torch.zeros_like(logp_TE[:, 0])
    lowest_chosen_T = logp_TE.gather(1, ids_TK).amin(1)
    # The last use of the log probabilities, so that they need no copy.
    highest_left_T = logp_TE.scatter_(1, ids_TK, FLOOR).amax(1)
    return lowest_chosen_T - highest_left_T


@functools.lru_cache(maxsize=16)
def _scales(device: torch.device) -> Tensor:
    scales = [[float(1 << FRACTION_BITS[name])] for name in _REALS]
    return torch.tensor(scales, dtype=torch.float64, device=device)
