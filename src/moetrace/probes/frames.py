"""Hooks as frames of their own: what dynamo must not make of them."""

from typing import Any

import torch

__all__ = ["never_a_frame"]


def never_a_frame(function: Any) -> None:
    """Keep dynamo from compiling a hook by itself; traced as part of a module it is inlined still.

    Around a compiled module with hooks PyTorch calls the hooks from Python, and dynamo would take
    each for a frame to compile: one frame more per grad mode, and another path through the hook.

    Args:
        function: The hook's ``__call__``. Without the private names of torch it is left as it is.
    """
    frames: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    try:
        strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        frames.set_code_exec_strategy(function.__code__, strategy)
    except (AttributeError, TypeError):
        return
