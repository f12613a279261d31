"""The balancing loss that a model itself returns, averaged over a window."""

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moetrace.probes.copies import Uncopied
from moetrace.probes.frames import never_a_frame

__all__ = ["AuxiliaryLoss"]

NAMES = ("aux_loss", "load_balance_loss")
"""Fields of a model's output that are looked for."""

_MOST_WINDOWS = 64


class AuxiliaryLoss(Uncopied):
    """A forward hook on a model: sums what its outputs hold under one of two names.

    A model that returns neither shows nothing. Nothing is read off the device but by `taken`, which
    the sink's own thread calls. In a compiled forward it does nothing.

    Cost: one addition of a scalar per forward of the whole model, no host sync.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._forwards = 0
        self._windows: dict[int, dict[str, Tensor]] = {}
        self._lock = threading.Lock()

    def watch(self, model: nn.Module) -> RemovableHandle:
        """Look at every output of ``model`` until the handle is removed."""
        return model.register_forward_hook(self)

    def close_window(self, step: int) -> None:
        """What was summed so far belongs to the window that ends at ``step``."""
        with self._lock:
            if self._forwards:
                means = {name: total / self._forwards for name, total in self._sums.items()}
                self._windows[step] = means
            self._sums, self._forwards = {}, 0
            while len(self._windows) > _MOST_WINDOWS:
                del self._windows[min(self._windows)]

    def taken(self, step: int) -> dict[str, float]:
        """The means of the window that ended at ``step``, as ``moe/{name}``; each once."""
        with self._lock:
            means = self._windows.pop(step, {})
        return {f"moe/{name}": float(mean) for name, mean in means.items()}

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        """Add what the output holds. Returns None on every path."""
        if torch.compiler.is_compiling() or not model.training or not torch.is_grad_enabled():
            return
        with contextlib.suppress(Exception), self._lock, torch.no_grad():
            found = {name: _value(output, name) for name in NAMES}
            for name, value in found.items():
                if isinstance(value, Tensor) and value.numel() == 1:
                    value = value.detach().reshape(()).float()
                    self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._forwards += bool(self._sums)


never_a_frame(AuxiliaryLoss.__call__)


def _value(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
