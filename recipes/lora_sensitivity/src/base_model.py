"""The model that gets an adapter, and its tokenizer: from a folder, cache or hub, or made."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.config import TINY_RANDOM
from src.errors import ExperimentError

__all__ = ["load_model", "load_tokenizer", "tiny_model", "tiny_tokenizer"]

_PAD, _BEGIN, _END = "<pad>", "<s>", "</s>"


def load_model(model_id: str, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of a name.

    Args:
        model_id: A folder; else a name, looked up in the local cache and then on the hub; or
            ``tiny-random``.
        dtype: Of its parameters.

    Raises:
        ExperimentError: There is none.
    """
    if model_id == TINY_RANDOM:
        return tiny_model().to(dtype)
    from transformers import AutoModelForCausalLM

    model: nn.Module = _loaded(AutoModelForCausalLM, model_id, dtype=dtype)
    return model


def load_tokenizer(model_id: str) -> Any:
    """The tokenizer of a model, found like the model.

    Raises:
        ExperimentError: There is none, or it has no token for the end.
    """
    if model_id == TINY_RANDOM:
        return tiny_tokenizer()
    from transformers import AutoTokenizer

    tokenizer = _loaded(AutoTokenizer, model_id)
    if tokenizer.eos_token_id is None:
        raise ExperimentError(f"the tokenizer of {model_id!r} has no token for the end of a text")
    return tokenizer


def tiny_model() -> nn.Module:
    """A Llama of 4 blocks and 62,944 parameters, the same one every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.name_or_path = TINY_RANDOM
    return model


def tiny_tokenizer() -> Any:
    """One token per byte, and three for padding, beginning and end.

    >>> tiny_tokenizer()("Hi")["input_ids"]
    [1, 42, 75]
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [_PAD, _BEGIN, _END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, vocabulary[_BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, bos_token=_BEGIN, eos_token=_END
    )


def _loaded(kind: Any, model_id: str, **settings: Any) -> Any:
    if Path(model_id).expanduser().is_dir():
        return _from_folder(kind, str(Path(model_id).expanduser()), **settings)
    if model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise ExperimentError(f"found no folder {model_id!r}; {_ADVICE}")
    try:
        return kind.from_pretrained(model_id, local_files_only=True, **settings)
    except (OSError, ValueError):
        pass
    try:
        return kind.from_pretrained(model_id, **settings)
    except (OSError, ValueError) as error:
        where = "in the local cache" if _offline() else "in the local cache or on the hub"
        raise ExperimentError(
            f"found no model {model_id!r} {where}: {str(error).strip().splitlines()[0]}\n{_ADVICE}"
        ) from error


def _from_folder(kind: Any, folder: str, **settings: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **settings)
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"the folder {folder!r} holds no usable model: {str(error).strip().splitlines()[0]}"
        ) from error


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


_ADVICE = f"--model takes a folder, a name on the hub, or {TINY_RANDOM}, which needs neither"
