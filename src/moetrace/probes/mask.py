"""A pre-hook on the model that takes its own ``attention_mask``, so that padding is not counted."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.ops import TracerState
from moetrace.probes.frames import never_a_frame
from moetrace.readers import KINDS_ARGUMENT

__all__ = ["MaskProbe", "takes_a_mask"]

# The mask of a module that has both is that of its encoder; its decoder is a module of its own.
_ARGUMENTS = ("attention_mask", "decoder_attention_mask")
_INPUTS = {
    "attention_mask": ("input_ids", "inputs_embeds"),
    "decoder_attention_mask": ("decoder_input_ids", "decoder_inputs_embeds"),
}


def takes_a_mask(module: nn.Module) -> bool:
    """Whether the module's ``forward`` names a mask of tokens that it gets.

    A decoder layer does not count: it gets hidden states, and a mask of another shape.
    """
    return _mask_argument(module) is not None


def _mask_argument(module: nn.Module) -> str | None:
    try:
        names = inspect.signature(type(module).forward).parameters
    except (TypeError, ValueError):
        return None
    if "hidden_states" in names:
        return None
    return next((argument for argument in _ARGUMENTS if argument in names), None)


class MaskProbe:
    """Leaves the real tokens of the running forward in the tracer's state.

    A forward without a mask clears what an earlier one left. A mask that is not ``(batch, length)``
    says nothing about tokens, and no guess is made: on the outermost module it clears too, further
    in it leaves what the outer one has found. Where the mask is longer than the input (generation
    with a cache) its last columns are the ones that the input stands for.

    Args:
        module: The module it is put on; only its signature is kept.
        state: Shared by all hooks of the tracer.
        inner: Whether a module around it has a mask probe too.
    """

    def __init__(self, module: nn.Module, state: TracerState, *, inner: bool = False) -> None:
        argument = _mask_argument(module)
        assert argument is not None, "a mask probe on a module that takes no mask"
        self.argument = argument
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        self.position = names.index(argument)
        self.kinds_position = names.index(KINDS_ARGUMENT) if KINDS_ARGUMENT in names else -1
        self.state = state
        self.inner = inner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Cost: one small copy per forward of the model; returns None on every path."""
        if self.kinds_position < 0:
            self._take_mask(args, kwargs)
            return
        kinds = kwargs.get(KINDS_ARGUMENT)
        if kinds is None and len(args) > self.kinds_position:
            kinds = args[self.kinds_position]
        self._take_mask(args, kwargs)
        self.state.mask_by_kind_T = _by_kind(self.state.mask_T, kinds)

    def _take_mask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.state.given_mask:
            return
        mask = kwargs.get(self.argument)
        if mask is None and len(args) > self.position:
            mask = args[self.position]
        flat = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        if self.inner and mask is not None and flat is None:
            return
        try:
            real_T = (
                None
                if flat is None
                else _real_tokens(flat, _length_of(_INPUTS[self.argument], args, kwargs))
            )
        except Exception:
            real_T = None
        if real_T is None or torch.compiler.is_compiling():
            self.state.mask_T = real_T
        else:
            self.state.keep_mask(real_T)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (contextlib.nullcontext(), "__exit__")


never_a_frame(MaskProbe.__call__)


def _by_kind(real_T: Tensor | None, kinds: Any) -> Tensor | None:
    """The mask with the tokens of kind 0 before the others, each in their order."""
    if real_T is None or not isinstance(kinds, Tensor) or kinds.numel() != real_T.numel():
        return real_T
    try:
        return real_T[(kinds.detach().reshape(-1) != 0).argsort(stable=True)]
    except Exception:
        return None


def _real_tokens(mask: Tensor, length: int | None) -> Tensor:
    if length is not None and length < mask.shape[1]:
        mask = mask[:, mask.shape[1] - length :]
    return mask.detach().reshape(-1) != 0


def _length_of(
    names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int | None:
    """Length of the sequence that goes in: ids ``(batch, length)`` or embeddings of it."""
    for name in names:
        value = kwargs.get(name)
        if isinstance(value, Tensor) and value.dim() >= 2:
            return int(value.shape[1])
    first = args[0] if args else None
    return int(first.shape[1]) if isinstance(first, Tensor) and first.dim() >= 2 else None
