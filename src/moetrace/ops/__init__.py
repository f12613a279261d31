"""The operators, on the device."""

from moetrace.ops.library import (
    Bin,
    TracerState,
    accumulate,
    count,
    counts_now,
    hold,
    hold_logits,
    register,
)
from moetrace.ops.receipts import expect, note_expected, note_received, receive

__all__ = [
    "Bin",
    "TracerState",
    "accumulate",
    "count",
    "counts_now",
    "expect",
    "hold",
    "hold_logits",
    "note_expected",
    "note_received",
    "receive",
    "register",
]
