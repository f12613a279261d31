"""The way of a closed window from its device to the host, without anybody waiting for it.

On a CPU a closed window is the host's already: nobody writes to it any more. From a GPU it goes
through a ring of pinned buffers on a stream of its own, and the training thread polls an event.
"""

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moetrace.accumulator import PackedWindow
from moetrace.probe_stats import ProbeWindow

__all__ = ["HostCopies", "HostCopy", "is_capturing"]

_SLOTS = 3


def is_capturing() -> bool:
    """Whether a CUDA graph is captured on this thread's stream right now."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class HostCopies:
    """Starts copies; one per device and window, whatever the number of routers."""

    def __init__(self) -> None:
        self._lanes: dict[torch.device, _Lane] = {}

    def free(self) -> bool:
        """Whether a copy can start now. If not the writer is behind: let the window grow."""
        return all(lane.free() for lane in self._lanes.values())

    def start(self, windows: Sequence[PackedWindow]) -> "HostCopy":
        """Start bringing the parts of one window over. Cost: one copy per device, no sync."""
        return HostCopy([(window, self._start(window.sums)) for window in windows])

    def _start(self, sums: Tensor) -> "_Transfer":
        if sums.device.type != "cuda":
            return _Transfer(sums if sums.device.type == "cpu" else sums.cpu(), None, None)
        lane = self._lanes.setdefault(sums.device, _Lane(sums.device))
        return lane.start(sums)


class HostCopy:
    """One window on its way: ask `ready`, then take `arrays` once."""

    def __init__(self, parts: Sequence[tuple[PackedWindow, "_Transfer"]]) -> None:
        # Not the window itself, which would keep its memory on the device.
        self._parts = tuple((part.routers, part.probes, transfer) for part, transfer in parts)

    def ready(self) -> bool:
        """Whether all parts have arrived. Never waits."""
        return all(transfer.ready() for _, _, transfer in self._parts)

    def arrays(
        self,
    ) -> list[tuple[tuple[int, ...], tuple[tuple[ProbeWindow, int], ...], NDArray[np.int64]]]:
        """The parts: positions of routers, windows of probes, numbers of both; private copies.

        Call it once, when ready.
        """
        return [(routers, probes, transfer.take()) for routers, probes, transfer in self._parts]


class _Transfer:
    def __init__(self, host: Tensor, event: "torch.cuda.Event | None", lane: "_Lane | None"):
        self._host, self._event, self._lane = host, event, lane

    def ready(self) -> bool:
        return self._event is None or bool(self._event.query())

    def take(self) -> NDArray[np.int64]:
        array: NDArray[np.int64] = self._host.numpy()
        if self._lane is not None:
            array = array.copy()
            self._lane.give_back(self._host)
        return array


class _Lane:
    """Stream and pinned ring of one GPU. The buffers grow once and are then used again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._spare: list[Tensor] = []
        self._in_flight = 0
        # The training thread takes, the writer gives back.
        self._lock = threading.Lock()

    def free(self) -> bool:
        return self._in_flight < _SLOTS

    def start(self, sums: Tensor) -> _Transfer:
        host = self._buffer(sums.numel())
        event = torch.cuda.Event()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(sums, non_blocking=True)
            event.record(self._stream)
        sums.record_stream(self._stream)
        return _Transfer(host, event, self)

    def give_back(self, host: Tensor) -> None:
        with self._lock:
            self._spare.append(host)
            self._in_flight -= 1

    def _buffer(self, size: int) -> Tensor:
        with self._lock:
            self._in_flight += 1
            for index, spare in enumerate(self._spare):
                if spare.numel() == size:
                    return self._spare.pop(index)
        return torch.empty(size, dtype=torch.int64, pin_memory=True)
