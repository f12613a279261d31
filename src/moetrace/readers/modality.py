"""Blocks that send the tokens of a text and those of an image to routers of their own.

Ernie-4.5-VL holds two mixtures of experts in one block. Each gets the tokens of its kind, flattened
in their order, and the one for images runs only where there are some.
"""

import inspect

from torch import nn

from moetrace.readers.wrapping import unwrapped

__all__ = ["KINDS_ARGUMENT", "kind_of"]

KINDS_ARGUMENT = "moe_mm_token_type_ids"
"""What a forward gets that tells the kinds apart: 0 for text, shape ``(batch, length)``."""


def kind_of(model: nn.Module, path: str) -> int | None:
    """The kind of token that alone comes to the router at ``path``; None where all tokens do."""
    parts = path.split(".")
    for index in range(len(parts) - 1, 0, -1):
        around = unwrapped(model.get_submodule(".".join(parts[: index - 1])))
        if KINDS_ARGUMENT not in _arguments(around):
            continue
        own = unwrapped(around.get_submodule(parts[index - 1]))
        alike = [name for name, c in around.named_children() if type(unwrapped(c)) is type(own)]
        if len(alike) > 1:
            return int(alike.index(parts[index - 1]) > 0)
    return None


def _arguments(module: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(type(module).forward).parameters)
    except (TypeError, ValueError):
        return []
