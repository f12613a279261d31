"""Holding a recomputed choice against the rows that the experts were called with.

Where a block chooses by itself moetrace can only do as its source does; whether that is right shows
in what each expert gets. Both are tallied over everything that runs, padding included, and compared
whenever a window closes: a rule that is wrong (noise, a limit, an expert that is left out) is found
in the window in which it first matters, and that window is not written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moetrace.ops import TracerState, note_received, receive
from moetrace.probes.copies import Uncopied
from moetrace.probes.execution import dispatch_modes, is_abstract, is_exported
from moetrace.probes.frames import never_a_frame

__all__ = ["RECEIPTS", "ReceiptProbe", "ReceiptWindow", "Receipts", "disagreement"]

RECEIPTS = "receipts"
"""What travels with a closed window under this name is for the writer, and for no snapshot."""

_ROUNDING = 100_000
"""One choice in so many may differ: a compiler may round a tie of two scores in another way."""
_MOST_SHOWN = 8


class Receipts:
    """What one router's rule says, and what its experts got, since it was last looked at.

    Args:
        router: Position of the router.
        num_experts: E.
        device: Where the router computes.
    """

    def __init__(self, router: int, num_experts: int, device: torch.device) -> None:
        self.router = router
        with torch.inference_mode(False):
            self.expected_E = torch.zeros(num_experts, dtype=torch.int64, device=device)
            # One for each expert and not views of one tensor: the compiler is to see no aliases.
            self.rows = [torch.zeros((), dtype=torch.int64) for _ in range(num_experts)]
        self.partial = False
        """Whether a forward may have raised between its choice and its experts."""

    def take(self) -> tuple["ReceiptWindow", Tensor]:
        """Rows per expert, and a copy of the choices per expert; both start from 0 again."""
        rows = tuple(int(row) for row in self.rows)
        window, expected_E = ReceiptWindow(self.router, rows, self.partial), self.expected_E.clone()
        for row in self.rows:
            row.zero_()
        self.expected_E.zero_()
        self.partial = False
        return window, expected_E

    def move(self, device: torch.device) -> Tensor:
        """Follow the model to another device; what the probe has to write to from now on."""
        self.expected_E = self.expected_E.to(device)
        return self.expected_E


@dataclass(frozen=True, slots=True)
class ReceiptWindow:
    """The rows of one closed window, waiting for the choices that are on their way to the host.

    Attributes:
        router: Position of the router.
        rows: Rows that each expert was called with.
        partial: Whether rows may be missing, as a forward raised.
    """

    router: int
    rows: tuple[int, ...]
    partial: bool
    field = RECEIPTS

    def stats(self, bits: NDArray[np.int64], /) -> list[tuple[int, str]]:
        """The router and why its rule cannot be right, or nothing."""
        reason = disagreement(self.rows, bits, partial=self.partial)
        return [] if reason is None else [(self.router, reason)]


class ReceiptProbe(Uncopied):
    """Notes how many rows one expert is called with; one operator, nothing else.

    Args:
        rows: The expert's tally, one int64 on the host.
        state: Shared by all hooks of the tracer.
    """

    def __init__(self, rows: Tensor, state: TracerState) -> None:
        self.rows = rows
        self.handle = state.handle

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Cost: one addition on the host; returns None on every path."""
        if is_exported():
            return
        inputs = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
        if not inputs:
            return
        traced = torch.compiler.is_compiling()
        plain = not traced and dispatch_modes() == 0
        if not plain and not traced and is_abstract(inputs[0]):
            return
        note = note_received if plain else receive
        note(self.rows, inputs[0].detach(), self.handle)


never_a_frame(ReceiptProbe.__call__)


def disagreement(
    rows: Sequence[int], expected: NDArray[np.int64], *, partial: bool = False
) -> str | None:
    """Why a rule cannot be what a block does, from one window; None where it can.

    Args:
        rows: Rows that each expert was called with.
        expected: Choices of each expert by the rule. Each may bring the same number of rows, where
            a choice is one for a whole sequence.
        partial: Whether rows may be missing; more than expected are wrong all the same.

    >>> disagreement([2, 1], np.array([2, 1])), disagreement([4, 2], np.array([2, 1]))
    (None, None)
    >>> disagreement([2, 1], np.array([1, 2]))
    'it gives [1, 2], and the experts got [2, 1] rows'
    """
    got, said = np.asarray(rows, dtype=np.int64), expected
    if partial and (got <= said).all():
        return None
    if not got.any():
        return "its experts were not called by themselves" if said.any() else None
    each = max(1, int(got.sum()) // max(1, int(said.sum())))
    differing = int(np.abs(got - each * said).sum())
    if differing <= 2 * each * (int(said.sum()) // _ROUNDING):
        return None
    return f"it gives {_shown(said)}, and the experts got {_shown(got)} rows"


def _shown(counts: NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, counts[:_MOST_SHOWN].tolist()))
    return f"[{shown}, ...]" if len(counts) > _MOST_SHOWN else f"[{shown}]"
