"""Texts as tokens: one prompt for training and evaluation, and a loss on the answer alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.config import DatasetType
from src.examples import Example

__all__ = ["IGNORED", "Encoded", "encoded", "left_padded", "prompt_ids", "prompt_text", "together"]

IGNORED = -100
"""Label of a token that is in no loss."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as tokens.

    Attributes:
        input_ids: Prompt, answer, end of sequence.
        labels: The same, with `IGNORED` on the prompt.
        cut: Whether it did not fit.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    cut: bool


def prompt_text(dataset: DatasetType, source: str) -> str:
    r"""What the model is given before it answers.

    >>> prompt_text(DatasetType.SAMSUM, "A: Hi.")
    'Dialogue:\nA: Hi.\nSummary:'
    """
    if dataset is DatasetType.SAMSUM:
        return f"Dialogue:\n{source}\nSummary:"
    return f"{source}\nText:"


def prompt_ids(tokenizer: Any, dataset: DatasetType, source: str, max_length: int) -> list[int]:
    """The prompt as tokens, at most three quarters of ``max_length``.

    A longer one loses the beginning of its source: its last line asks for the answer. The rule is
    the same in training and evaluation.

    Args:
        tokenizer: Of the model.
        dataset: Decides the form of the prompt.
        source: What is to be said.
        max_length: Most tokens of prompt and answer.
    """
    ids = list(tokenizer(prompt_text(dataset, source))["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    room = max_length * 3 // 4
    if len(ids) <= room:
        return ids
    begins = ids[:1] if ids[0] == tokenizer.bos_token_id else []
    return begins + ids[len(ids) - room + len(begins) :]


def encoded(tokenizer: Any, dataset: DatasetType, example: Example, max_length: int) -> Encoded:
    """A sample as tokens, with a loss on its answer and on the end of it.

    Args:
        tokenizer: Of the model.
        dataset: Decides the form of the prompt.
        example: The sample.
        max_length: Most tokens. An answer that does not fit is cut, and then has no end.
    """
    prompt = prompt_ids(tokenizer, dataset, example.source, max_length)
    answer = list(tokenizer(f" {example.target}", add_special_tokens=False)["input_ids"])
    answer.append(tokenizer.eos_token_id)
    whole = len(prompt) + len(answer)
    answer = answer[: max_length - len(prompt)]
    ids = (*prompt, *answer)
    return Encoded(ids, (*(IGNORED for _ in prompt), *answer), whole > max_length)


def together(samples: Sequence[dict[str, Any]], *, pad: int) -> dict[str, Tensor]:
    """Samples of different lengths as one batch, padded on the right.

    Padding is told by where a sample ends and never by its id, which may be that of the end.

    Args:
        samples: Each with ``input_ids`` and ``labels``.
        pad: What stands in the padding.
    """
    longest = max(len(sample["input_ids"]) for sample in samples)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for sample in samples:
        ids, labels = list(sample["input_ids"]), list(sample["labels"])
        gap = longest - len(ids)
        rows["input_ids"].append(ids + [pad] * gap)
        rows["labels"].append(labels + [IGNORED] * gap)
        rows["attention_mask"].append([1] * len(ids) + [0] * gap)
    return {name: torch.tensor(values) for name, values in rows.items()}


def left_padded(prompts: Sequence[Sequence[int]], *, pad: int) -> tuple[Tensor, Tensor]:
    """Prompts as one batch that all end at its last column, and its mask.

    >>> left_padded([[5], [6, 7]], pad=0)[0].tolist()
    [[0, 5], [6, 7]]
    """
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
