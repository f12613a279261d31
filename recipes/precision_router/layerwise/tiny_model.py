"""A small Llama over bytes, for machines without a model: taught on Python's own sources."""

import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.errors import RecipeError
from layerwise.text_data import byte_ids

__all__ = ["VOCABULARY", "source_text", "teach", "tiny_llama"]

VOCABULARY = 256
_ROWS, _LENGTH = 8, 128
_LEAST_TEXT = 500_000


def tiny_llama(*, width: int = 96, layers: int = 4, length: int = 512) -> nn.Module:
    """A random Llama that reads bytes; by default 0.5 million parameters."""
    import transformers

    transformers.logging.set_verbosity_error()
    config: Any = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model.eval()


def source_text(*, unseen: bool = False) -> str:
    """Python's own standard library: four fifths to teach on, or the rest, which is unseen then.

    Raises:
        RecipeError: This Python has no sources.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    if len(text) < _LEAST_TEXT:
        raise RecipeError(
            f"found {len(text)} characters of sources in this Python, too few to teach with; "
            "take --teach_steps 0, or a model of your own"
        )
    cut = len(text) * 4 // 5
    return text[cut:] if unseen else text[:cut]


def teach(
    model: nn.Module, text: str, *, steps: int, seed: int, learning_rate: float = 3e-3
) -> float:
    """Train a model on the bytes of a text; returns the loss of the last step, nats per byte."""
    from tqdm.auto import trange  # type: ignore[import-untyped]

    ids = torch.tensor(byte_ids(text))
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    loss = torch.tensor(float("nan"))
    for _ in (progress := trange(steps, desc="Teaching")):
        starts = torch.randint(len(ids) - _LENGTH, (_ROWS,), generator=draw)
        batch: Tensor = torch.stack([ids[start : start + _LENGTH] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix_str(f"Loss: {loss.item():.4f}", refresh=False)
    model.eval()
    return loss.item()
