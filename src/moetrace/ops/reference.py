"""What one forward of one router adds to its accumulator, as a composition of torch operations.

It runs wherever there is no fused kernel, takes the forwards on a CPU that `moetrace.ops.host_form`
leaves, and says what every other form of the operator must equal. Letters: T tokens, E experts,
K chosen per token, S scalars of `moetrace.layout.SCALARS`, R its sums of reals,
W = `AccumulatorLayout.width`.

No value is read back to the host, no shape depends on data, and no operation is used that CUDA
refuses or serialises in deterministic mode for its own sake (``bincount``, ``histc``, ``nonzero``).
No matrix product either: autocast would take it to bfloat16.
"""

import functools

import torch
from torch import Tensor

from moetrace.layout import FRACTION_BITS, LIMITS, SCALARS, SCORINGS
from moetrace.routing import Routing

__all__ = ["FLOOR", "log_scores", "routing_delta"]

FLOOR = -200.0
"""Log probabilities are bounded from below, so that p log p of a masked expert is 0 and not NaN."""

_REALS = SCALARS[SCALARS.index("entropy_sum") :]
_NONFINITE = SCALARS.index("nonfinite")
_DROPPED = SCALARS.index("dropped")
_LIMIT = LIMITS["lse_sum"]


def routing_delta(
    routing: Routing, mask_T: Tensor | None, num_experts: int, scoring: int
) -> Tensor:
    """The sums of one forward, shape ``(W,)``, int64, on the device of the choice.

    Counts are exact. A sum of reals is formed in float32 over the tokens of this forward (per token
    for the scalars, as one sum for ``prob_sum``) and rounded to fixed point once.

    Args:
        routing: What the router decided; leading dimensions are flattened here.
        mask_T: True where a token is real, bool ``(T,)``; None where all are.
        num_experts: E.
        scoring: Position in `moetrace.layout.SCORINGS`.

    Cost: about 60 small operations, the largest over ``(T, E)``; no host sync.
    """
    _check(routing, num_experts)
    choice = _Choice(routing, num_experts)
    T = choice.tokens
    constants = _constants(choice.device)
    if mask_T is None:
        real_T1 = None
        scalars = torch.add(constants.call, constants.token, alpha=T)
    else:
        real_T1 = mask_T.view(T, 1)
        scalars = torch.add(constants.call, constants.padding, alpha=T)
        scalars += (constants.token - constants.padding) * mask_T.sum()
    counts, gates = choice.counted(real_T1)
    if choice.left_TE is not None:
        scalars[_DROPPED] = choice.dropped(choice.left_TE, real_T1)
    if routing.logits_TE is None:
        scalars[_NONFINITE] = 0
        return torch.cat((counts, torch.zeros_like(gates), gates, scalars))
    probs, sums = _scores(_rows(routing.logits_TE).float(), choice, real_T1, SCORINGS[scoring])
    scalars[_NONFINITE:] += sums
    return torch.cat((counts, probs, gates, scalars))


class _Choice:
    """The experts of each token, given as ids ``(T, K)`` or as a map over experts ``(T, E)``."""

    def __init__(self, routing: Routing, num_experts: int) -> None:
        self._num_experts = num_experts
        self._weights = routing.topk_weights_TK
        self._map = routing.routing_map_TE
        self.left_TE: Tensor | None = None
        if routing.topk_expert_ids_TK is not None:
            # Beside ids a map does not choose: it is what a capacity limit has left of the choice.
            self.left_TE, self._map = None if self._map is None else _rows(self._map), None
            ids_TK = _rows(routing.topk_expert_ids_TK).long()
            # An id outside [0, E) goes to the overflow bin E before any indexed operation sees it
            # (on CUDA it would kill the context), and is expert 0 where a score is looked up.
            self._safe_ids_TK = ids_TK.clamp(0, num_experts - 1)
            outside_TK = self._safe_ids_TK != ids_TK
            self._safe_ids_TK.masked_fill_(outside_TK, 0)
            bins_TK = torch.add(self._safe_ids_TK, outside_TK, alpha=num_experts)
            self._bins = bins_TK.reshape(-1)  # ids may come transposed
            self.tokens, self.device = int(ids_TK.shape[0]), ids_TK.device
        else:
            assert self._map is not None
            self._map = _rows(self._map)
            self._chosen_TE = self._map != 0
            self.tokens, self.device = int(self._map.shape[0]), self._map.device

    def counted(self, real_T1: Tensor | None) -> tuple[Tensor, Tensor]:
        """Assignments per expert and the overflow bin ``(E + 1,)``, gate weights ``(E,)``."""
        if self._map is not None:
            return self._counted_map(real_T1)
        T, K = self._safe_ids_TK.shape
        if real_T1 is None:
            ones = self._bins.new_ones(T * K)
        else:
            ones = real_T1.long().expand(T, K).reshape(-1)
        counts = self._bins.new_zeros(self._num_experts + 1).scatter_add_(0, self._bins, ones)
        gates = torch.zeros_like(counts)
        if self._weights is not None:
            fixed = _fixed_gates(_rows(self._weights)).reshape(-1)
            gates.scatter_add_(0, self._bins, fixed if real_T1 is None else fixed.mul_(ones))
        return counts, gates[: self._num_experts]

    def dropped(self, left_TE: Tensor, real_T1: Tensor | None) -> Tensor:
        """Choices of an expert that the map beside them shows as 0, a scalar."""
        dropped_TK = left_TE.gather(1, self._safe_ids_TK) == 0
        return (dropped_TK if real_T1 is None else dropped_TK & real_T1).sum()

    def _counted_map(self, real_T1: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self._map is not None
        chosen_TE = self._chosen_TE if real_T1 is None else self._chosen_TE & real_T1
        counts = chosen_TE.sum(0)
        if self._map.is_floating_point():
            gates = (_fixed_gates(self._map) * chosen_TE).sum(0)
        else:
            gates = torch.zeros_like(counts)
        return torch.cat((counts, counts.new_zeros(1))), gates

    def margin(self, shifted_TE: Tensor, floor_T1: Tensor) -> Tensor:
        """Lowest score chosen minus highest not chosen, ``(T, 1)``; overwrites the scores."""
        if self._map is not None:
            lowest_T1 = shifted_TE.masked_fill(~self._chosen_TE, 0.0).amin(1, keepdim=True)
            highest_T1 = shifted_TE.masked_fill_(self._chosen_TE, -torch.inf).amax(1, keepdim=True)
            margin_T1 = torch.maximum(lowest_T1, floor_T1) - torch.maximum(highest_T1, floor_T1)
            return margin_T1 * self._chosen_TE.any(1, keepdim=True)
        if self._safe_ids_TK.shape[1] >= shifted_TE.shape[1]:
            return torch.zeros_like(floor_T1)
        lowest_T1 = shifted_TE.gather(1, self._safe_ids_TK).amin(1, keepdim=True)
        # The last use of the scores, so that they need no copy.
        shifted_TE.scatter_(1, self._safe_ids_TK, -torch.inf)
        highest_T1 = shifted_TE.amax(1, keepdim=True)
        return torch.maximum(lowest_T1, floor_T1).sub_(torch.maximum(highest_T1, floor_T1))


def _scores(
    logits_TE: Tensor, choice: _Choice, real_T1: Tensor | None, scoring: str
) -> tuple[Tensor, Tensor]:
    """Probability sums ``(E,)``; minus the scored tokens, then the sums of reals, ``(1 + R,)``."""
    scores_TE = log_scores(logits_TE, scoring)
    highest_T1 = scores_TE.amax(1, keepdim=True)
    # Shifted scores are at most 0, and 0 somewhere in each row, so that nothing below is NaN: a
    # difference is NaN where a row is not finite, and minus infinity for a masked expert.
    shifted_TE = (scores_TE - highest_T1).nan_to_num_(0.0, 0.0, FLOOR)
    exp_TE = shifted_TE.exp()
    total_T1 = exp_TE.sum(1, keepdim=True)
    log_total_T1 = total_T1.log()
    confidence_T1 = total_T1.reciprocal_()
    own = scores_TE is logits_TE
    raw_lse_T1 = highest_T1 + log_total_T1 if own else logits_TE.logsumexp(1, keepdim=True)
    lse_T1 = raw_lse_T1.nan_to_num(0.0, 0.0, 0.0)
    scored_T1 = lse_T1 == raw_lse_T1
    if real_T1 is not None:
        scored_T1 = scored_T1 & real_T1
    scored_T1 = scored_T1.float()
    mean_shift_T1 = (exp_TE * shifted_TE).sum(1, keepdim=True)
    entropy_T1 = torch.addcmul(log_total_T1, mean_shift_T1, confidence_T1, value=-1)
    margin_T1 = choice.margin(shifted_TE, log_total_T1 + FLOOR)
    sums_E = exp_TE.mul_(confidence_T1 * scored_T1).sum(0)
    fixed_E = sums_E.mul_(1 << FRACTION_BITS["prob_sum"]).round_().long()
    lse_T1.clamp_(-_LIMIT, _LIMIT)
    reals = (scored_T1, entropy_T1, confidence_T1, margin_T1, lse_T1, lse_T1 * lse_T1)
    reals_TR = torch.cat(reals, 1).mul_(_constants(lse_T1.device).scales).mul_(scored_T1).round_()
    return fixed_E, reals_TR.sum(0, dtype=torch.int64)


def log_scores(logits_TE: Tensor, scoring: str) -> Tensor:
    """The logarithm of each expert's score before the scores of a token are normalised."""
    if scoring == "sigmoid":
        return torch.nn.functional.logsigmoid(logits_TE)
    if scoring == "sqrtsoftplus":
        log_TE = torch.nn.functional.softplus(logits_TE).log_()
        # Far below 0 softplus is its own exponential, which may be too small for a float.
        return torch.where(logits_TE < -16.0, logits_TE, log_TE).mul_(0.5)
    if scoring == "probabilities":
        return logits_TE.log()
    return logits_TE


def _check(routing: Routing, num_experts: int) -> None:
    """Refuse parts that do not fit together: a reader of the user's may return anything.

    Raises:
        ValueError: The ids are no integers or have no axis for the choices of a token, or weights,
            scores or map are of another shape than they say.
    """
    ids, logits, weights, routing_map = routing
    given = ids if ids is not None else routing_map
    if given is None:
        raise ValueError("a routing holds neither expert ids nor a routing map")
    shape = tuple(given.shape)
    if ids is not None:
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype is torch.bool:
            kind = str(ids.dtype).removeprefix("torch.")
            raise ValueError(f"found expert ids of {kind}; they have to be integers")
        of_one_token = ids.dim() == 1 and logits is not None and logits.numel() == num_experts
        if ids.dim() < 2 and not of_one_token:
            raise ValueError(f"found expert ids of shape {shape}; they need an axis for choices")
        if weights is not None and weights.numel() != ids.numel():
            raise ValueError(f"found weights of shape {tuple(weights.shape)} for ids of {shape}")
    tokens = given.numel() // max(1, given.shape[-1])
    for name, part in (("scores", logits), ("a map", routing_map)):
        whole = part is None or part.shape[-1:].numel() == num_experts
        if part is not None and not (whole and part.numel() == tokens * num_experts):
            raise ValueError(
                f"found {name} of shape {tuple(part.shape)} for {tokens} tokens and {num_experts} "
                "experts"
            )


def _fixed_gates(weights: Tensor) -> Tensor:
    finite = weights.float().nan_to_num(0.0, _LIMIT, -_LIMIT).clamp_(-_LIMIT, _LIMIT)
    return finite.mul_(1 << FRACTION_BITS["gate_weight_sum"]).round_().long()


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


class _Constants:
    """Small tensors that every forward adds or multiplies with, made once per device."""

    def __init__(self, device: torch.device) -> None:
        def marked(*names: str) -> Tensor:
            return torch.tensor([int(name in names) for name in SCALARS], device=device)

        self.call = marked("calls")
        self.token = marked("tokens", "nonfinite")
        self.padding = marked("masked")
        scales = [float(1 << FRACTION_BITS[name]) for name in _REALS]
        self.scales = torch.tensor([-1.0, *scales], device=device)


@functools.lru_cache(maxsize=16)
def _constants(device: torch.device) -> _Constants:
    with torch.inference_mode(False):
        return _Constants(device)
