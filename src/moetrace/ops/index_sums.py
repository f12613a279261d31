"""What one look-up adds to the sums of its table: draws, and then their scores.

Two forms, equal to the bit: numpy on a host, and tensor operations that read no value back and have
no shape that depends on one. Letters: M draws of T tokens, K for each.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moetrace.index_layout import MOST_SCORE, SCORE_BITS, SCORE_SQ_BITS, IndexLayout
from moetrace.ops.library import TracerState

__all__ = ["Drawn", "IndexSums", "add_draws", "add_scored", "most_added", "of_sub_keys"]

# A squared score from the fixed-point one, in integers, so that every order of additions agrees.
_ROOT_SHIFT = 15
_SQUARE_SHIFT = 2 * (SCORE_BITS - _ROOT_SHIFT) - SCORE_SQ_BITS
_MOST_ROOT = 32 << (SCORE_BITS - _ROOT_SHIFT)


class Drawn:
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
        add_draws(self._tracer, self._sums, self._layout, ids_TK.to(self._sums.device), None)

    def read(self) -> NDArray[np.int64]:
        """A copy of the sums on the host; waits for the device."""
        found: NDArray[np.int64] = self._sums.cpu().numpy().copy()
        return found

    def clear(self) -> None:
        """Start from 0 again."""
        self._sums.zero_()


def _on_host(sums: Tensor) -> bool:
    """Whether numpy counts here; a test says no, to see the other form."""
    return sums.is_cpu


def _tokens_of(ids: Tensor) -> int:
    """Tokens of a look-up: all that stands before K, or before the heads and K."""
    if ids.dim() < 2:
        return ids.numel()
    return ids.shape[:-1].numel() if ids.dim() < 4 else ids.shape[:-2].numel()


def most_added(ids: Tensor) -> int:
    """The most that counting a look-up adds to any one count, whatever its ids are.

    >>> most_added(torch.zeros(2, 3, 4, dtype=torch.int64)), most_added(torch.zeros(5, 0))
    (24, 5)
    """
    return max(1, ids.numel(), _tokens_of(ids))


def _real(tracer: TracerState, mask_T: Tensor | None, tokens: int) -> Tensor | None:
    if mask_T is None:
        return None
    if mask_T.numel() != tokens:
        tracer.misfits += 1
        return None
    return mask_T.reshape(-1)


def add_draws(
    tracer: TracerState, sums: Tensor, layout: IndexLayout, ids: Tensor, mask_T: Tensor | None
) -> Drawn:
    """Add a look-up to a table's sums, and say what it drew.

    Args:
        tracer: Has the lock, and notes a mask that does not fit.
        sums: The table's sums.
        layout: Where each stands.
        ids: Expert ids, as in `moetrace.ops.indices.note_lookup`, on the device of the sums.
        mask_T: Real tokens, or None.
    """
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
        return Drawn(drawn, real, tokens)
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
        return Drawn(drawn_M, None if real_T is None else weight_M, tokens)


def add_scored(
    tracer: TracerState, sums: Tensor, layout: IndexLayout, drawn: Drawn, scores: Tensor
) -> None:
    """Add the scores of a look-up to its table's sums.

    Args:
        tracer: Has the lock.
        sums: The table's sums.
        layout: Where each stands.
        drawn: What the look-up drew.
        scores: One for each of its ids, padding included, in their order.
    """
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
            host[layout.scalar("scored_calls")] += 1
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
            at = layout.counts
            noted = torch.stack([bad_M.sum(), square, torch.ones_like(square)])
            sums[at : at + 3].add_(noted)


def of_sub_keys(keys: Tensor, ids: Tensor, n: int) -> Tensor:
    """Softmax over the chosen K of the sums of their two sub-keys' scores.

    Source: DogeCDMoE of transformers 5.23, which splits what its gate returns into halves of the
    whole batch, ``view(2, T, n)``.
    """
    ids_TK = ids.reshape(-1, ids.shape[-1]).to(torch.int64).clamp(0, n * n - 1)
    keys_2Tn = keys.reshape(2, ids_TK.shape[0], n)
    summed_TK = keys_2Tn[0].gather(1, ids_TK // n) + keys_2Tn[1].gather(1, ids_TK % n)
    return torch.softmax(summed_TK, dim=-1)
