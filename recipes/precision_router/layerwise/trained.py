"""Trained routers, and pieces of text that they have not seen."""

import argparse
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from layerwise.causal_lm import LayerwiseQuantizeForCausalLM
from layerwise.preparation import validation_examples
from layerwise.program import device_of
from layerwise.text_data import draw_pieces, texts_of, token_reader

__all__ = ["load_trained", "unseen_pieces"]

_log = logging.getLogger("layerwise")


def load_trained(
    options: argparse.Namespace, saved: Mapping[str, Any]
) -> LayerwiseQuantizeForCausalLM:
    """The model with the routers of a checkpoint, in eval mode.

    Raises:
        RecipeError: They do not belong together.
    """
    device = device_of(options.device)
    model = LayerwiseQuantizeForCausalLM.from_quantized(
        options.model_path,
        trust_remote_code=options.trust_remote_code,
        precisions=saved["config"].get("precisions"),
    )
    model.load_state_dict(saved["model_state_dict"])
    model.pool.refuse_short(options.seq_len)
    _log.info("Model loaded successfully. Device: %s", device)
    return model.to(device).eval()


def unseen_pieces(
    options: argparse.Namespace,
    trained: Mapping[str, Any],
    model: LayerwiseQuantizeForCausalLM,
) -> tuple[Tensor, Tensor]:
    """Pieces to test on, and others to search static bits on: neither of them trained on.

    The same data set is shuffled as in the training, and what that has drawn is left out.

    Args:
        options: With ``dataset``, ``seq_len``, ``num_examples`` and ``random_state``.
        trained: The options of the training.
        model: Whose tokens are meant.

    Raises:
        RecipeError: There are not enough of them.
    """
    same = trained["dataset"] == options.dataset
    drawn = argparse.Namespace(**trained)
    skip = drawn.num_examples + validation_examples(drawn) if same else 0
    if same and trained["seq_len"] != options.seq_len:
        _log.warning(
            "routers were trained on pieces of %d tokens of this text, and pieces of %d may "
            "overlap with them; take --seq_len %d or another text",
            trained["seq_len"],
            options.seq_len,
            trained["seq_len"],
        )
    texts, long_texts = texts_of(options.dataset)
    config: Any = model.base.config
    encode = token_reader(
        options.model_path, config.vocab_size, trust_remote_code=options.trust_remote_code
    )
    pieces = draw_pieces(
        texts,
        encode,
        length=options.seq_len,
        train=options.num_examples,
        validation=options.num_examples,
        seed=trained["random_state"] if same else options.random_state,
        long_texts=long_texts,
        skip=skip,
    )
    return pieces.validation, pieces.train
