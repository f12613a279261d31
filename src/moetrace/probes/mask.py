"""A pre-hook on the model that takes its own ``attention_mask``, so that padding is not counted."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.ops import TracerState

__all__ = ["MaskProbe", "takes_a_mask"]

_ARGUMENT = "attention_mask"


def takes_a_mask(module: nn.Module) -> bool:
    """Whether the module's ``forward`` names an ``attention_mask``."""
    try:
        return _ARGUMENT in inspect.signature(type(module).forward).parameters
    except (TypeError, ValueError):
        return False


class MaskProbe:
    """Leaves the real tokens of the running forward in the tracer's state.

    A forward without a mask clears what an earlier one left. A mask that is not ``(batch, length)``
    is left alone: no guess is made. Where the mask is longer than the input (generation with a
    cache) its last columns are the ones that the input stands for.

    Args:
        module: The module it is put on; only its signature is kept.
        state: Shared by all hooks of the tracer.
    """

    def __init__(self, module: nn.Module, state: TracerState) -> None:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        self.position = names.index(_ARGUMENT)
        self.state = state

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Cost: one small copy per forward of the model; returns None on every path."""
        if self.state.given_mask:
            return
        try:
            real_T = self._real_tokens(args, kwargs)
        except Exception:
            real_T = None
        if real_T is None or torch.compiler.is_compiling():
            self.state.mask_T = real_T
        else:
            self.state.keep_mask(real_T)

    def _real_tokens(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        mask = kwargs.get(_ARGUMENT)
        if mask is None and len(args) > self.position:
            mask = args[self.position]
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        length = _input_length(args, kwargs)
        if length is not None and length < mask.shape[1]:
            mask = mask[:, mask.shape[1] - length :]
        return mask.detach().reshape(-1) != 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (contextlib.nullcontext(), "__exit__")


def _input_length(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Length of the sequence that goes in: ids ``(batch, length)`` or embeddings of it."""
    for name in ("input_ids", "inputs_embeds", "hidden_states"):
        value = kwargs.get(name)
        if isinstance(value, Tensor) and value.dim() >= 2:
            return int(value.shape[1])
    first = args[0] if args else None
    return int(first.shape[1]) if isinstance(first, Tensor) and first.dim() >= 2 else None
