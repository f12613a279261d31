"""Whether a forward can go through the fused kernel, decided without importing Triton for a CPU.

The kernel is imported when the first CUDA tensor arrives. Where it cannot be had (no Triton, a
compiler that fails) the composition of `moetrace.ops.reference` does the work from then on, which
is said once and shown by `operator_form`; it is no error of the model's.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moetrace.layout import SCORINGS, AccumulatorLayout
from moetrace.ops.host_form import has_host_kernel
from moetrace.routing import Routing

__all__ = ["add_fused", "operator_form"]

_log = logging.getLogger("moetrace")

_DEVICES = {"cuda"}
_FLOATS = {torch.bfloat16, torch.float16, torch.float32, torch.float64}
_SCORINGS = {SCORINGS.index("softmax"), SCORINGS.index("sigmoid")}
_MOST_EXPERTS = 1024


class _Kernel:
    """The kernel, or why there is none."""

    def __init__(self) -> None:
        self.add: Callable[..., None] | None = None
        self.failure: str | None = None
        self._lock = threading.Lock()

    def resolve(self) -> Callable[..., None] | None:
        """Import it once; None where that failed, now or before."""
        if self.add is None and self.failure is None:
            with self._lock:
                try:
                    from moetrace.ops.triton_kernel import add_routing

                    self.add = add_routing
                except Exception as error:
                    self.give_up(error)
        return self.add

    def give_up(self, error: Exception) -> None:
        """Leave the work to the composition from now on, and say so once."""
        self.add = None
        if self.failure is None:
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            _log.warning(
                "the fused kernel cannot be used (%s); routers on a GPU are counted by some fifty "
                "small operations instead, exactly but slower; install a triton that fits torch",
                self.failure,
            )


_kernel = _Kernel()


def operator_form(device: torch.device) -> str:
    """Which form of the operator counts on ``device``, in words.

    On a GPU that has not counted yet the kernel is imported to find out; whether it builds shows at
    the first forward.

    >>> operator_form(torch.device("xpu"))
    'torch composition'
    """
    if device.type not in _DEVICES:
        if device.type != "cpu":
            return "torch composition"
        return "host kernel" if has_host_kernel() else "numpy, since no host kernel was built"
    if _kernel.resolve() is None:
        return f"torch composition, since the fused kernel failed: {_kernel.failure}"
    return "fused kernel"


def add_fused(
    row_W: Tensor, routing: Routing, mask_T: Tensor | None, num_experts: int, scoring: int
) -> bool:
    """Add one forward to one row of an accumulator with the fused kernel, where it can.

    It can on CUDA, with ids and logits, for softmax and sigmoid, up to 1,024 experts, and where all
    tensors are plain ones: a subclass such as ``DTensor`` has no address of its own, and a kernel
    would read anywhere.

    Args:
        row_W: The row, int64, contiguous.
        routing: What the router decided.
        mask_T: True where a token is real; None where all are.
        num_experts: E.
        scoring: Position in `moetrace.layout.SCORINGS`.

    Returns:
        Whether it was added; if not it is for the composition.

    Raises:
        ValueError: The parts of the routing disagree about the number of tokens.

    Cost: one kernel launch, no host sync; comparisons where the answer is no.
    """
    if row_W.device.type not in _DEVICES or scoring not in _SCORINGS:
        return False
    if num_experts > _MOST_EXPERTS or not _fits(row_W, routing, mask_T, num_experts):
        return False
    add = _kernel.resolve()
    if add is None:
        return False
    try:
        add(row_W, routing, mask_T, num_experts, scoring)
    except (ValueError, torch.OutOfMemoryError):
        raise  # of this forward, not of the kernel
    except Exception as error:
        _kernel.give_up(error)
        return False
    return True


def _fits(row_W: Tensor, routing: Routing, mask_T: Tensor | None, num_experts: int) -> bool:
    ids, logits, weights = routing.topk_expert_ids_TK, routing.logits_TE, routing.topk_weights_TK
    if ids is None or logits is None or routing.routing_map_TE is not None:
        return False
    if logits.shape[-1] != num_experts or row_W.shape[0] != AccumulatorLayout(num_experts).width:
        return False
    if weights is not None and (weights.shape != ids.shape or weights.dtype not in _FLOATS):
        return False
    if logits.dtype not in _FLOATS or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        return False
    parts: list[Any] = [part for part in (ids, logits, weights, mask_T) if part is not None]
    return all(type(part) is Tensor and part.device == row_W.device for part in parts)
