"""Answers of a model to prompts, in batches of about the same length."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from configs.config import DatasetType, ExperimentConfig
from src.encoding import left_padded, prompt_ids
from src.errors import ExperimentError, is_out_of_memory
from src.examples import Prompt

__all__ = ["answers"]


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: ExperimentConfig,
    *,
    quiet: bool = False,
) -> list[str]:
    """What the model says to each prompt; the model is left in the mode that it was in.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: What it is asked.
        config: The form of the prompts, and how tokens are chosen.
        quiet: No progress bar.

    Raises:
        ExperimentError: Memory ran out.
    """
    asked, dataset = config.evaluation, DatasetType(config.data.dataset_type)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    limit = config.data.max_length
    tokens = [prompt_ids(tokenizer, dataset, item.source, limit) for item in prompts]
    order = sorted(range(len(tokens)), key=lambda at: len(tokens[at]))
    size = config.training.batch_size
    drawing = {"temperature": asked.temperature, "top_p": asked.top_p} if asked.do_sample else {}
    found = [""] * len(tokens)
    was_training = model.training
    model.eval()
    if asked.do_sample:
        torch.manual_seed(config.training.seed)
    try:
        for start in tqdm(range(0, len(order), size), desc="answers", disable=quiet):
            batch = order[start : start + size]
            ids, mask = left_padded([tokens[at] for at in batch], pad=pad)
            device = next(model.parameters()).device
            with torch.no_grad():
                said = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=asked.max_new_tokens,
                    do_sample=asked.do_sample,
                    pad_token_id=pad,
                    eos_token_id=tokenizer.eos_token_id,
                    **drawing,
                )
            for at, row in zip(batch, said[:, ids.shape[1] :], strict=True):
                found[at] = tokenizer.decode(row, skip_special_tokens=True).strip()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ExperimentError(
            f"out of memory while answering; try --batch_size {max(1, size // 2)}"
        ) from error
    finally:
        model.train(was_training)
    return found
