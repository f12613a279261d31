"""The files of a training: checkpoints with the routers alone, and the history.

Everything in them is a tensor or a plain value, so that ``torch.load`` reads it as it is, without
``weights_only=False``, and every JSON reader reads the history.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layerwise.errors import RecipeError

__all__ = [
    "BEST",
    "HISTORY",
    "epoch_file",
    "load_checkpoint",
    "newest_checkpoint",
    "read_history",
    "save_checkpoint",
    "write_json",
]

BEST = "best_router_checkpoint.pt"
HISTORY = "training_history.json"

_EPOCH = re.compile(r"router_checkpoint_epoch_(\d+)\.pt")
_TRAINED = ("total_loss", "ce_loss", "precision_loss", "avg_precision")


def epoch_file(epoch: int) -> str:
    """Name of the checkpoint of an epoch, from 1.

    >>> epoch_file(3)
    'router_checkpoint_epoch_3.pt'
    """
    return f"router_checkpoint_epoch_{epoch}.pt"


def save_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write it whole or not at all: a training that is killed leaves no half checkpoint."""
    partial = path.with_name(f"{path.name}.partial")
    torch.save(dict(checkpoint), partial)
    os.replace(partial, path)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint, on the CPU.

    Raises:
        RecipeError: It is none.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RecipeError(
            f"found no checkpoint {path}; train_layerwise_router.py writes one into --save_dir"
        ) from None
    except Exception as error:  # of a zip, of a pickle, of a disk
        raise RecipeError(f"found {path}, which is no checkpoint of a router: {error}") from None
    if not isinstance(loaded, dict) or "model_state_dict" not in loaded:
        raise RecipeError(f"found {path}, which is no checkpoint of a router")
    return loaded


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last epoch in a folder, or None."""
    found = {
        int(match[1]): item
        for item in (folder.iterdir() if folder.is_dir() else ())
        if (match := _EPOCH.fullmatch(item.name))
    }
    return found[max(found)] if found else None


def write_json(value: Any, path: Path) -> None:
    """Write plain values; what is not finite becomes null, which every reader takes."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(_finite(value), indent=2, allow_nan=False), encoding="utf-8")
    os.replace(partial, path)


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The epochs of a history, in either spelling of its keys, each with both.

    A training writes ``total_loss`` and the rest, and the same as ``train_total_loss``, beside
    ``val_total_loss``. A file that has one of the two spellings reads the same.

    Raises:
        RecipeError: It is no history.
    """
    try:
        epochs = json.loads(Path(path).read_text(encoding="utf-8"))
        return [_both_spellings(epoch) for epoch in epochs]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"found {path}, which is no history of a training: {error}") from None


def _both_spellings(epoch: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(epoch)
    for name in _TRAINED:
        known = both.get(name, both.get(f"train_{name}"))
        both[name] = both[f"train_{name}"] = known
    return both


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
