"""The files that a weight tracker leaves for people: whole or not there at all, never half.

Each is written under a temporary name in its folder and then renamed.
"""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["Nested", "SnapshotFormat", "load_snapshot", "save_json", "save_snapshot"]

SnapshotFormat = Literal["safetensors", "pt"]
"""``"safetensors"``, or ``"pt"`` for a nested dict of tensors as ``torch.save`` writes it."""

Nested = Mapping[str, Mapping[str, Mapping[str, Tensor]]]
"""Tensors by layer, component and name."""

_SCHEMA = "1"
_PLACES = "places"


def save_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write valid JSON.

    Raises:
        OSError: It cannot be written.
        ValueError: A number in it is NaN or infinite.
    """
    text = json.dumps(record, allow_nan=False, indent=1) + "\n"
    _put(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_snapshot(
    folder: Path, weights: Nested, *, step: int, model: str, form: SnapshotFormat
) -> Path:
    """Write the weights themselves: ``router_weight_snapshot_step_{step}``.

    In safetensors the keys are ``layer_0.load_balancer.weight_ih``, and the metadata says schema,
    step, model and which part of a key is what.

    Args:
        folder: Where to.
        weights: What to write; from their devices to the host on the way.
        step: Completed steps.
        model: Class name of the model.
        form: The format, a `SnapshotFormat`.

    Raises:
        OSError: It cannot be written.
    """
    path = folder / f"router_weight_snapshot_step_{step}.{form}"
    host = {
        layer: {
            component: {name: tensor.detach().cpu().contiguous() for name, tensor in part.items()}
            for component, part in parts.items()
        }
        for layer, parts in weights.items()
    }
    if form == "pt":
        _put(path, lambda temporary: torch.save(host, temporary))
        return path
    flat: dict[str, Tensor] = {}
    places: dict[str, list[str]] = {}
    for layer, parts in host.items():
        for component, part in parts.items():
            for name, tensor in part.items():
                key = f"{layer}.{component}.{name}"
                flat[key], places[key] = tensor, [layer, component, name]
    metadata = {"schema": _SCHEMA, "step": str(step), "model": model, _PLACES: json.dumps(places)}
    _put(path, lambda temporary: save_file(flat, temporary, metadata))
    return path


def load_snapshot(path: str | os.PathLike[str]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """The weights of a snapshot of either format, by layer, component and name, on the CPU.

    Nothing in the file is run: ``.pt`` is read with ``weights_only=True``.

    Raises:
        OSError: There is no such file.
        ValueError: It is neither ``.safetensors`` nor ``.pt``.
    """
    path = Path(path)
    if path.suffix == ".pt":
        nested: dict[str, dict[str, dict[str, Tensor]]] = torch.load(
            path, map_location="cpu", weights_only=True
        )
        return nested
    if path.suffix != ".safetensors":
        known = " or ".join(f".{form}" for form in get_args(SnapshotFormat))
        raise ValueError(f"found {path.name!r}; a snapshot ends in {known}")
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    with safe_open(path, framework="pt") as file:
        places = json.loads(file.metadata()[_PLACES])
        for key, (layer, component, name) in places.items():
            found.setdefault(layer, {}).setdefault(component, {})[name] = file.get_tensor(key)
    return found


def _put(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
