"""A causal language model of nested weights: making it, saving it, loading it.

The folder holds the ``config.json`` of transformers with one more entry, `BLOCK`, one
``model.safetensors``, and the tokenizer where the model has one.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.errors import RecipeError
from layerwise.nested_linear import PARENT_BITS, NestedLinear

__all__ = [
    "BLOCK",
    "decoder_layers",
    "load_nested",
    "nest_model",
    "offered_precisions",
    "save_nested",
]

BLOCK = "nested_precision"
"""The entry of ``config.json``: ``precisions``, ``group``, ``parent_bits``."""

_WEIGHTS = "model.safetensors"
_log = logging.getLogger("layerwise")


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers: as many as the configuration says, and the largest such list.

    Raises:
        RecipeError: There is none.
    """
    config: Any = model.config
    count = getattr(config, "num_hidden_layers", 0)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    lists = [part for part in lists if len(part) == count]
    if not count or not lists:
        raise RecipeError(
            f"found no list of {count} decoder layers in {type(model).__name__}; "
            "give a causal language model of decoder layers"
        )
    return max(lists, key=lambda part: sum(weight.numel() for weight in part.parameters()))


def nest_model(model: nn.Module, *, group: int = 64, precisions: Sequence[int]) -> nn.Module:
    """Replace every linear layer inside the decoder layers by its nested form, in place.

    Embeddings, norms and the head stay as they are.

    Args:
        model: A causal language model of transformers.
        group: Inputs that share a scale.
        precisions: What the folder will say it holds.

    Raises:
        RecipeError: A precision is not from 2 to 8, or there is no linear layer.
    """
    offered = sorted(set(precisions))
    if not offered or offered[0] < 2 or offered[-1] > PARENT_BITS:
        raise RecipeError(f"found --precisions {offered}; take some from 2 to {PARENT_BITS}")
    layers = decoder_layers(model)
    whole = sum(weight.numel() for weight in layers.parameters() if weight.dim() > 1)
    names = [name for name, part in layers.named_modules() if isinstance(part, nn.Linear)]
    nested_numbers = 0
    for name in names:
        linear = layers.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        nested_numbers += linear.weight.numel()
        layers.set_submodule(name, NestedLinear.from_linear(linear, group=group))
    if not names:
        raise RecipeError(f"found no linear layer in the layers of {type(model).__name__}")
    if nested_numbers < 0.9 * whole:
        share = nested_numbers / whole
        _log.warning(
            "only %.0f %% of the layers' weights are linear layers and nested", 100 * share
        )
    config: Any = model.config
    setattr(config, BLOCK, {"precisions": offered, "group": group, "parent_bits": PARENT_BITS})
    return model


def save_nested(model: nn.Module, folder: str | os.PathLike[str], tokenizer: Any = None) -> Path:
    """Write a nested model; what is tied is written once."""
    from safetensors.torch import save_file

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in written or not tensor.numel():
            written.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    save_file(tensors, path / _WEIGHTS, metadata={"format": "pt"})
    config: Any = model.config
    config.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return path


def offered_precisions(folder: str | os.PathLike[str]) -> list[int]:
    """What a folder says it holds; reads one small file.

    Raises:
        RecipeError: It is no folder of a nested model.
    """
    return list(_block(Path(folder))["precisions"])


def load_nested(
    folder: str | os.PathLike[str], *, trust_remote_code: bool = False
) -> tuple[nn.Module, list[int]]:
    """A nested model, and the precisions that it holds.

    Raises:
        RecipeError: It is no folder of a nested model, or one that is not whole.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(folder)
    block = _block(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with init_empty_weights(include_buffers=False):  # no weight is drawn, or held twice
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    try:
        tensors = load_file(path / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f"found no readable {path / _WEIGHTS}: {error}; run quantize.py"
        ) from None
    layers = decoder_layers(model)
    prefix = next(name for name, part in model.named_modules() if part is layers)
    for name, part in list(layers.named_modules()):
        if isinstance(part, nn.Linear) and f"{prefix}.{name}.q" in tensors:
            with torch.device("meta"):  # what the file lacks is then found below
                made = NestedLinear(
                    part.in_features,
                    part.out_features,
                    group=int(block["group"]),
                    bias=part.bias is not None,
                )
            layers.set_submodule(name, made)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    lacking = [name for name, weight in model.state_dict().items() if weight.is_meta]
    if lacking:
        raise RecipeError(
            f"found no {lacking[0]} in {path / _WEIGHTS} ({len(lacking)} are missing); "
            "run quantize.py again"
        )
    return model, list(block["precisions"])


def _block(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise RecipeError(
            f"found no quantized model in {path}; MODEL_PATH is a folder that quantize.py has made"
        ) from None
    except ValueError as error:
        raise RecipeError(f"found {path / 'config.json'}, which is no JSON: {error}") from None
    block = config.get(BLOCK) if isinstance(config, dict) else None
    if not isinstance(block, dict) or not block.get("precisions") or not block.get("group"):
        raise RecipeError(
            f"found a model in {path}, but not a quantized one; run: quantize.py {path} FOLDER"
        )
    return block
