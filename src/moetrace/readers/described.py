"""What a module has returned, in few words: for whoever has to write a reader for it."""

import dataclasses
from typing import Any

from torch import Tensor

__all__ = ["described"]

_MOST_ITEMS = 8
_DEEPEST = 3
_KINDS = ("is_sparse", "is_sparse_csr", "is_nested", "is_quantized", "is_meta")


def described(output: Any, *, deepest: int = _DEEPEST) -> str:
    """Types, dtypes and shapes of an output; no value is read.

    >>> import torch
    >>> described((torch.zeros(6, 4), {"ids": torch.zeros(6, 2, dtype=torch.int64)}, None))
    '(float32[6, 4], (ids: int64[6, 2]), None)'
    >>> described([[1, 2], 0.5])
    '((int, int), float)'
    """
    if isinstance(output, Tensor):
        return _of_tensor(output)
    if output is None:
        return "None"
    parts: list[tuple[str, Any]] = []
    if isinstance(output, dict):
        parts = [(f"{key}: ", value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        parts = [("", value) for value in output]
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        names = [field.name for field in dataclasses.fields(output)]
        parts = [(f"{name}: ", getattr(output, name, None)) for name in names]
    if not parts or deepest < 1:
        return type(output).__name__
    shown = [
        f"{name}{described(value, deepest=deepest - 1)}" for name, value in parts[:_MOST_ITEMS]
    ]
    return f"({', '.join(shown)}{', ...' if len(parts) > _MOST_ITEMS else ''})"


def _of_tensor(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    odd = [name.removeprefix("is_") for name in _KINDS if getattr(tensor, name, False)]
    sizes = "..." if "nested" in odd else ", ".join(map(str, tensor.shape))
    return " ".join([*odd, f"{kind}[{sizes}]"])
