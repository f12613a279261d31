"""The sums of the open windows, on the device: pending forwards, and what steps have committed.

Every router has one int64 tensor of its own that the operator adds to, with a row per `Bin`. They
are separate tensors and not views of one, so that the compiler sees no aliases; they are no buffers
of the model, so that ``state_dict``, DDP and ``.half()`` never see them. A commit packs the rows of
all routers into one flat window per phase. No operation here reads a value back to the host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moetrace.layout import SATURATED, AccumulatorLayout
from moetrace.ops import Bin
from moetrace.probe_stats import ProbeWindow

__all__ = ["Accumulators", "PackedWindow"]


@dataclass(frozen=True, slots=True)
class PackedWindow:
    """A closed window on its device: the sums of some routers, one after the other.

    Attributes:
        routers: Positions of the routers, in the order in which they stand in ``sums``.
        sums: Flat int64 tensor; nobody writes to it any more.
        probes: What stands behind the routers' sums, and how many numbers each of it has.
    """

    routers: tuple[int, ...]
    sums: Tensor
    probes: tuple[tuple[ProbeWindow, int], ...] = ()

    def extended(self, window: ProbeWindow, bits: Tensor) -> "PackedWindow":
        """The same with the window of a probe behind it, so that both travel in one copy."""
        return PackedWindow(
            self.routers, torch.cat([self.sums, bits]), (*self.probes, (window, bits.numel()))
        )


_COMMITS_IN_REACH = 1024
"""Steps after which open windows are brought back below `SATURATED`.

The other half of int64 takes so many steps of 2**52 each: 4 million tokens of gate weight 1 to one
expert, per step and device.
"""


class Accumulators:
    """Pending and committed sums of all routers of one tracer.

    Args:
        layouts: One per router.
        devices: Where each router computes.
    """

    def __init__(
        self, layouts: Sequence[AccumulatorLayout], devices: Sequence[torch.device]
    ) -> None:
        self._layouts = tuple(layouts)
        self.tensors = [
            _zeros((len(Bin), layout.width), device)
            for layout, device in zip(layouts, devices, strict=True)
        ]
        self._groups = self._grouped()
        self._windows: dict[str, dict[int, Tensor]] = {}
        self._commits = 0

    def commit(self, *, undecided: bool, phase: str = "train") -> None:
        """Add the pending forwards of a finished step to the window of ``phase``, and empty them.

        Args:
            phase: ``"train"``, or what a step is called that changed no weight.
            undecided: Whether some forward ran without gradients. Per router it was the first pass
                of a reentrant checkpoint if the router has recomputations and no first pass with
                gradients; otherwise it was a rollout and goes to that phase.

        Cost: three operations per device and step, whatever the number of routers; some fifteen
        where something is undecided.
        """
        for key, group in enumerate(self._groups):
            first = group.packed(Bin.FIRST)
            if undecided:
                no_grad, recomputed = group.packed(Bin.NO_GRAD), group.packed(Bin.RECOMPUTED)
                recomputed_calls = recomputed[group.calls]
                reentrant = (first[group.calls] == 0) & (recomputed_calls > 0)
                # As many recomputations as passes: only the checkpoint ran without gradients.
                whole = recomputed_calls == no_grad[group.calls]
                passes = torch.where(whole, no_grad, recomputed)
                first = torch.where(reentrant, passes, first)
                self._add("rollout", key, torch.where(reentrant, no_grad - passes, no_grad))
                group.clear(Bin.NO_GRAD)
                group.clear(Bin.RECOMPUTED)
            self._add(phase, key, first)
            group.clear(Bin.FIRST)
        self._commits += 1
        if self._commits % _COMMITS_IN_REACH == 0:
            for window in self._windows.values():
                for sums in window.values():
                    sums.clamp_(-SATURATED, SATURATED)

    def relabel(self, phase: str) -> None:
        """Add the pending forwards of a step that did not finish to the window of ``phase``."""
        for key, group in enumerate(self._groups):
            self._add(phase, key, group.packed(Bin.FIRST) + group.packed(Bin.NO_GRAD))
            for row in (Bin.FIRST, Bin.NO_GRAD, Bin.RECOMPUTED):
                group.clear(row)

    def collect_other(self, phase: str) -> None:
        """Add what the other phase counted to the window of ``phase``, and empty it."""
        for key, group in enumerate(self._groups):
            self._add(phase, key, group.packed(Bin.OTHER))
            group.clear(Bin.OTHER)

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases with an open window."""
        return tuple(self._windows)

    def window(self, phase: str) -> list[PackedWindow]:
        """The open window of ``phase``, one part per device."""
        window = self._windows.get(phase, {})
        return [PackedWindow(self._groups[key].routers, sums) for key, sums in window.items()]

    def open(self) -> list[Tensor]:
        """Everything that no closed window holds, per router, all phases and bins together.

        Recomputations are left out: their first passes are in.
        """
        totals = [
            tensor[Bin.FIRST] + tensor[Bin.NO_GRAD] + tensor[Bin.OTHER] for tensor in self.tensors
        ]
        for window in self._windows.values():
            for key, sums in window.items():
                for index, part in self._groups[key].split(sums).items():
                    totals[index] = totals[index] + part
        return totals

    def close(self, phase: str) -> None:
        """Let go of the window of ``phase``; the next one starts from zero."""
        self._windows.pop(phase, None)

    def move(self, router: int, device: torch.device) -> None:
        """Put one router's sums on another device, with all that it has counted.

        Call after `commit`, `relabel` or `collect_other` have emptied what should not move along.
        """
        slices = {
            phase: {
                index: part
                for key, sums in window.items()
                for index, part in self._groups[key].split(sums).items()
            }
            for phase, window in self._windows.items()
        }
        self.tensors[router] = self.tensors[router].to(device)
        self._groups = self._grouped()
        self._windows = {
            phase: {
                key: torch.cat([parts[index].to(group.device) for index in group.routers])
                for key, group in enumerate(self._groups)
            }
            for phase, parts in slices.items()
        }

    def _add(self, phase: str, key: int, sums: Tensor) -> None:
        window = self._windows.setdefault(phase, {})
        if key in window:
            window[key].add_(sums)
        else:
            window[key] = sums

    def _grouped(self) -> list["_Group"]:
        devices = list(dict.fromkeys(tensor.device for tensor in self.tensors))
        return [
            _Group(
                device,
                [index for index, tensor in enumerate(self.tensors) if tensor.device == device],
                self._layouts,
                self.tensors,
            )
            for device in devices
        ]


class _Group:
    """The routers of one device, packed one after the other."""

    def __init__(
        self,
        device: torch.device,
        routers: Sequence[int],
        layouts: Sequence[AccumulatorLayout],
        tensors: Sequence[Tensor],
    ) -> None:
        self.device = device
        self.routers = tuple(routers)
        self._widths = [layouts[index].width for index in routers]
        self._rows = {row: [tensors[index][row] for index in routers] for row in Bin}
        calls, start = [], 0
        for index in routers:
            calls += [start + layouts[index].scalar("calls")] * layouts[index].width
            start += layouts[index].width
        self.calls = torch.tensor(calls, dtype=torch.int64, device=device)

    def packed(self, row: Bin) -> Tensor:
        return torch.cat(self._rows[row])

    def clear(self, row: Bin) -> None:
        _zero_all(self._rows[row])

    def split(self, sums: Tensor) -> dict[int, Tensor]:
        return dict(zip(self.routers, sums.split(self._widths), strict=True))


def _zero_each(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor.zero_()


# One call for all routers of a device; a loop where the private name has gone away.
_zero_all: Callable[[list[Tensor]], Any] = getattr(torch, "_foreach_zero_", _zero_each)


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    # Made under inference mode the tensor could not be updated by a later training step.
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=torch.int64, device=device)
