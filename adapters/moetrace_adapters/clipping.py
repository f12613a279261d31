"""Gradients measured where accelerate has unscaled them and not clipped them yet."""

import functools
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator  # type: ignore[import-untyped]

__all__ = ["measured_when_unscaled"]


def measured_when_unscaled(
    accelerator: Accelerator, measure: Callable[[], Any]
) -> Callable[[], None]:
    """Call ``measure`` whenever ``accelerator`` has unscaled complete gradients.

    ``clip_grad_norm_`` and ``clip_grad_value_`` begin with that, with a gradient scaler or without;
    a micro-batch that is no end of a step is left out. DeepSpeed clips by itself and is not seen.

    Args:
        accelerator: Of the training; its ``unscale_gradients`` is covered on this object only.
        measure: Must not raise.

    Returns:
        Takes the cover off. Safe to call twice.
    """
    unscale = accelerator.unscale_gradients

    @functools.wraps(unscale)
    def unscale_and_measure(*args: Any, **kwargs: Any) -> None:
        unscale(*args, **kwargs)
        if accelerator.sync_gradients:
            measure()

    accelerator.unscale_gradients = unscale_and_measure

    def uncover() -> None:
        if vars(accelerator).get("unscale_gradients") is unscale_and_measure:
            del accelerator.unscale_gradients

    return uncover
