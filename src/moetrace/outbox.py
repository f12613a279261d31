"""Closed windows on their way from the device to the writer, in their order."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from moetrace.accumulator import Accumulators, PackedWindow
from moetrace.closed_window import ClosedWindow
from moetrace.host_copy import HostCopies
from moetrace.probe_stats import ProbeWindow
from moetrace.probes import GradientMeter, IndexMeter, Receipts, WeightMeter
from moetrace.writer import Writer

__all__ = ["Meter", "Outbox"]

Meter = GradientMeter | IndexMeter | WeightMeter

_MOST_PACKED = 1 << 17


class Outbox:
    """Packs the sums of a window, starts their copy, and hands them on when they have arrived.

    It never waits for the device but where a drain gives it a deadline.

    Args:
        accumulators: The sums.
        writer: Takes windows that have arrived.
        meters: What is measured beside routing; it travels with the training windows.
        receipts: What experts received; it travels with every window.
    """

    def __init__(
        self,
        accumulators: Accumulators,
        writer: Writer,
        meters: Sequence[Meter],
        receipts: Sequence[Receipts],
    ) -> None:
        self._accumulators = accumulators
        self._writer = writer
        self._meters = tuple(meters)
        self._receipts = tuple(receipts)
        self._copies = HostCopies()
        self._under_way: deque[ClosedWindow] = deque()

    def full(self) -> bool:
        """Whether a window should grow instead: the writer is behind, or no copy is free."""
        return self._writer.behind() or not self._copies.free()

    def send(
        self, phase: str, span: Sequence[int], *, step: int, health: Mapping[str, Any]
    ) -> None:
        """Close the window of a phase.

        Args:
            phase: The phase.
            span: Its first step and its last.
            step: Optimizer steps completed.
            health: What the tracer says of itself.
        """
        copy = self._copies.start(self._packed(phase, step))
        self._accumulators.close(phase)
        first, last = span
        self._under_way.append(ClosedWindow(phase, first, last, time.time(), copy, dict(health)))
        self.hand_over()

    def hand_over(self, deadline: float = 0.0) -> None:
        """Give the writer the windows that have arrived, in order.

        Asked on the training thread: an event that another thread queries can break the capture of
        a CUDA graph. Waits for none but until ``deadline`` (monotonic), which only a drain sets.
        """
        while self._under_way:
            if not self._under_way[0].copy.ready():
                if time.monotonic() >= deadline:
                    return
                time.sleep(0.001)
                continue
            self._writer.submit(self._under_way.popleft())

    def _packed(self, phase: str, step: int) -> list[PackedWindow]:
        """The window of a phase with what travels along, one part per device."""
        windows = self._accumulators.window(phase)
        along: list[tuple[ProbeWindow, Tensor]] = [item.take() for item in self._receipts]
        if phase == "train":
            along += [part for meter in self._meters for part in meter.window(step)]
        for probe, bits in along:
            at = next((i for i, w in enumerate(windows) if w.sums.device == bits.device), None)
            # Packing copies once more, which a million experts would notice.
            if at is None or bits.numel() > _MOST_PACKED:
                windows.append(PackedWindow((), bits, ((probe, bits.numel()),)))
            else:
                windows[at] = windows[at].extended(probe, bits)
        return windows
