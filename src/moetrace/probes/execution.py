"""What kind of execution a hook finds itself in, asked at run time or while it is traced."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["dispatch_modes", "is_abstract", "is_exported"]

_is_tracing: Callable[[], bool] = getattr(torch.jit, "is_tracing", lambda: False)

dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
"""How many dispatch modes watch this thread; at least one where that cannot be told."""


def is_exported() -> bool:
    """Whether a program is made of the forward, in which no observer may be left."""
    return torch.compiler.is_exporting() or _is_tracing()


def is_abstract(tensor: Tensor | None) -> bool:
    """Whether a forward only goes through the motions: fake tensors, or a graph being recorded."""
    return isinstance(tensor, FakeTensor) or get_proxy_mode() is not None
