"""Adds one forward of one router to its accumulator on a CPU.

By the compiled kernel, ``_host_kernel.c``, in one pass over the scores; where none was built, since
there was no C compiler, by `moetrace.ops.host_arrays`. The kernel takes addresses, so all that it
must not misread is found out here. Letters: T tokens, E experts, K chosen per token.
"""

import threading
from typing import TypeGuard

import torch
from torch import Tensor

from moetrace.ops.host_arrays import array_delta
from moetrace.routing import Routing

try:
    from moetrace.ops._host_kernel import add as _add
except ImportError:
    _add = None  # type: ignore[assignment]

__all__ = ["add_on_host", "has_host_kernel"]

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""What the kernel reads logits of; others are converted."""

_FLOATS = {torch.bfloat16, torch.float16, torch.float32, torch.float64}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def has_host_kernel() -> bool:
    """Whether the compiled kernel is installed."""
    return _add is not None


def add_on_host(
    accumulator: Tensor,
    row: int,
    lock: threading.Lock,
    routing: Routing,
    mask_T: Tensor | None,
    num_experts: int,
    scoring: int,
) -> bool:
    """Add one forward to one row of an accumulator on a CPU, where it can.

    It can with ids and without a map, where all parts are plain tensors on a CPU that fit together;
    not finite scores and ids that name no expert included. Counts are exact. A sum of reals is
    formed in float32 per token, in float64 over tokens (in float32 over at most 256 of them for the
    probabilities), and rounded to fixed point once.

    Args:
        accumulator: The router's sums, int64, ``(bins, W)``, contiguous; the only thing written.
        row: Which of its rows.
        lock: Held while the row is written to.
        routing: What the router decided; leading dimensions are flattened.
        mask_T: True where a token is real, bool ``(T,)``; None where all are.
        num_experts: E.
        scoring: Position in `moetrace.layout.SCORINGS`.

    Returns:
        Whether it was added; if not it is for the composition.

    Raises:
        MemoryError: There is none for three rows of scores.
        ValueError: The memory of a part was freed, as where somebody offloads activations.

    Cost: one pass over logits of float32 or bfloat16, 80 ns a token of 64 experts
    (``benchmarks/counted_cost.py``).
    """
    if _add_by_kernel(accumulator, row, lock, routing, mask_T, num_experts, scoring):
        return True
    sums = array_delta(routing, mask_T, num_experts, scoring)
    if sums is None:
        return False
    with lock:
        accumulator.numpy()[row] += sums
    return True


def _add_by_kernel(
    accumulator: Tensor,
    row: int,
    lock: threading.Lock,
    routing: Routing,
    mask_T: Tensor | None,
    num_experts: int,
    scoring: int,
) -> bool:
    ids, logits, weights, routing_map = routing
    if _add is None or routing_map is not None:
        return False
    if not _is_plain(ids) or ids.dtype not in _INTEGERS:
        return False
    K = ids.size(-1) if ids.dim() > 1 else 0
    if not K:
        return False
    if ids.dtype is not torch.int64:
        ids = ids.long()
    ids = ids.contiguous()
    assignments = ids.numel()
    T = assignments // K
    kind = row_bytes = 0
    if logits is not None:
        if not _is_plain(logits) or logits.dtype not in _FLOATS:
            return False
        if logits.shape[-1:].numel() != num_experts or logits.numel() != T * num_experts:
            return False
        if logits.dtype not in _KINDS:
            logits = logits.float()
        kind, row_bytes = _KINDS[logits.dtype], logits.element_size()
        if logits.dim() == 2 and logits.stride(1) == 1:
            row_bytes *= logits.stride(0)
        else:
            logits = logits.contiguous()
            row_bytes *= num_experts
    if weights is not None:
        if not _is_plain(weights) or weights.dtype not in _FLOATS:
            return False
        if weights.numel() != assignments:
            return False
        weights = weights.float().contiguous()
    if mask_T is not None:
        if not _is_plain(mask_T) or mask_T.dtype is not torch.bool or mask_T.numel() != T:
            return False
        mask_T = mask_T.contiguous()
    with lock:
        _add(
            accumulator.data_ptr() + accumulator.stride(0) * accumulator.element_size() * row,
            num_experts,
            T,
            K,
            _address(ids),
            _address(logits),
            kind,
            row_bytes,
            scoring,
            _address(weights),
            _address(mask_T),
        )
    return True


def _is_plain(tensor: Tensor | None) -> TypeGuard[Tensor]:
    # A subclass has no numbers of its own, and a negated view has others than lie in its memory.
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
    )


def _address(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if not address and tensor.numel():
        raise ValueError(f"found a tensor of shape {tuple(tensor.shape)} whose memory was freed")
    return address
