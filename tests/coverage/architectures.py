"""Tiny random models of every architecture that the scan finds."""

import importlib
import inspect
import re
from typing import Any

import torch
from torch import nn

from tests.coverage.configurations import EXCEPTIONS, EXPERTS, MODELS, SMALL
from tests.coverage.scan import Suspect

__all__ = ["model_classes", "tiny_config", "tiny_model"]

_ORDER = (
    r"ForCausalLM$",
    r"TextModel$",
    r"(?<!Text)ForConditionalGeneration$",
    r"Model$",
    r"For",
)


def model_classes(suspect: Suspect) -> list[type[nn.Module]]:
    """The classes of the suspect's folder that are to be built, smallest first."""
    from transformers import PreTrainedModel

    name = f"transformers.models.{suspect.folder}.modeling_{suspect.folder}"
    module = importlib.import_module(name)
    if suspect.folder in MODELS:
        return [getattr(module, item) for item in MODELS[suspect.folder]]
    classes = [
        item
        for item in vars(module).values()
        if inspect.isclass(item)
        and issubclass(item, PreTrainedModel)
        and item.__module__ == name
        and not item.__name__.endswith("PreTrainedModel")
        and "input_ids" in inspect.signature(item.forward).parameters
    ]
    for pattern in _ORDER:
        for item in classes:
            if re.search(pattern, item.__name__) and not _composite(item.config_class):
                return [item]
    raise LookupError(f"found no language model among the {len(classes)} models of {name}")


def tiny_model(model_class: type[Any], **changes: Any) -> nn.Module:
    """A random model of the class: few layers, 8 experts of which 2 are chosen, biases not zero."""
    own = EXCEPTIONS.get(model_class.__name__, {})
    config = tiny_config(model_class.config_class, **{**own, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        _liven(model)
    return model


def tiny_config(config_class: type[Any], **changes: Any) -> Any:
    """A configuration with every field of `SMALL` that it has, and with ``changes``."""
    fields = inspect.signature(config_class.__init__).parameters
    small = {name: value for name, value in SMALL.items() if name in fields}
    if "kv_lora_rank" in fields:  # latent attention: as many key heads as heads
        small["num_key_value_heads"] = small["num_attention_heads"]
    wanted = {**small, **changes}
    if isinstance(text := wanted.get("text_config"), dict):
        wanted["text_config"] = tiny_config(config_class.sub_configs["text_config"], **text)
    return config_class(**wanted)


def _composite(config_class: type[Any] | None) -> bool:
    return bool(getattr(config_class, "sub_configs", None))


def _liven(model: nn.Module) -> None:
    """Make biases of the choice non-zero and logits spread, as in every trained model.

    At zero bias a reader that chooses by the logits looks right, and logits near zero hide a wrong
    scoring function.
    """
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):  # DeepSeek-V4's table of experts by token id, created as zeros
            rows = [torch.randperm(EXPERTS)[: table.shape[1]] for _ in range(len(table))]
            table.copy_(torch.stack(rows))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        with torch.no_grad():
            if not torch.isfinite(tensor).all() or tensor.abs().max() > 1e3:
                tensor.normal_(0.0, 0.02)  # memory that the model's own initialisation left alone
            if _CHOICE_BIAS.search(name):
                tensor.normal_(0.0, 0.3)
            elif _ROUTER_MATRIX.search(name) and tensor.dim() == 2 and len(tensor) <= _MOST_ROWS:
                tensor.normal_(0.0, 0.4)


_CHOICE_BIAS = re.compile(r"correction_bias|balancing_bias|expert_bias|moe_statics|score_bias")
_ROUTER_MATRIX = re.compile(r"(router|gate|gating|classifier)\b.*weight$")
_MOST_ROWS = 16
