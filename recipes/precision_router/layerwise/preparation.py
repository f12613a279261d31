"""What a training starts from: its loss, its model and its pieces of text."""

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from layerwise.causal_lm import LayerwiseQuantizeForCausalLM
from layerwise.errors import RecipeError
from layerwise.objective import Objective
from layerwise.text_data import Pieces, draw_pieces, texts_of, token_reader

__all__ = ["load_model", "load_pieces", "log_configuration", "objective_of", "validation_examples"]

_log = logging.getLogger("layerwise")


def load_pieces(options: argparse.Namespace, model: LayerwiseQuantizeForCausalLM) -> Pieces:
    """The pieces to train on and to validate with; says what it does as it does it."""
    _log.info("Loading dataset: %s", options.dataset)
    _log.info("Fetching dataset: %s", options.dataset)
    texts, long_texts = texts_of(options.dataset)
    config: Any = model.base.config
    encode = token_reader(
        options.model_path, config.vocab_size, trust_remote_code=options.trust_remote_code
    )
    _log.info(
        "Sampling %d samples of length %d from %s...",
        options.num_examples,
        options.seq_len,
        options.dataset,
    )
    pieces = draw_pieces(
        texts,
        encode,
        length=options.seq_len,
        train=options.num_examples,
        validation=validation_examples(options),
        seed=options.random_state,
        long_texts=long_texts,
    )
    _log.info("Dataset loaded: %d samples, batch size: %d", len(pieces.train), options.batch_size)
    _log.info("Validation: %d samples more", len(pieces.validation))
    return pieces


def validation_examples(options: argparse.Namespace) -> int:
    """How many pieces to validate with: a tenth of the others where nothing was said.

    >>> validation_examples(argparse.Namespace(val_examples=None, num_examples=1000))
    100
    """
    if options.val_examples is None:
        return max(1, int(options.num_examples) // 10)
    return int(options.val_examples)


def objective_of(options: argparse.Namespace, precisions: Sequence[int]) -> Objective:
    """The loss that the options ask for.

    Raises:
        RecipeError: The target lies outside of the precisions.
    """
    lowest, highest = precisions[0], precisions[-1]
    if options.objective == "target" and not lowest <= options.target_precision <= highest:
        raise RecipeError(
            f"found --target_precision {options.target_precision:g}; it has to lie between "
            f"{lowest} and {highest}"
        )
    if (
        options.objective == "weighted"
        and abs(options.weight_ce + options.weight_precision - 1) > 1e-6
    ):
        _log.warning(
            "--weight_ce %g and --weight_precision %g do not sum to 1; going on with them as "
            "they are",
            options.weight_ce,
            options.weight_precision,
        )
    return Objective(
        kind=options.objective,
        lowest=lowest,
        highest=highest,
        weight_ce=options.weight_ce,
        weight_precision=options.weight_precision,
        scale=options.precision_scale,
        target=options.target_precision,
        alpha=options.alpha,
    )


def load_model(
    options: argparse.Namespace, precisions: Sequence[int], objective: Objective, device: str
) -> LayerwiseQuantizeForCausalLM:
    """The model with new routers, on its device; says what it does as it does it."""
    _log.info("Loading model from %s", options.model_path)
    start = options.start_precision
    if start is None and objective.kind == "target":
        start = min(precisions, key=lambda bits: abs(bits - objective.target))
    model = LayerwiseQuantizeForCausalLM.from_quantized(
        options.model_path,
        trust_remote_code=options.trust_remote_code,
        precisions=precisions,
        pool=options.pool,
        start_precision=start,
    ).to(device)
    model.recompute_layers(options.recompute)
    _log.info("Model loaded successfully. Device: %s", device)
    _log.info("Available precisions: %s", list(precisions))
    trained = sum(weight.numel() for weight in model.router_parameters())
    _log.info("Number of trainable parameters: %d", trained)
    return model


def log_configuration(options: argparse.Namespace, precisions: Sequence[int]) -> None:
    """Say what is about to be trained."""
    _log.info("Starting router training...")
    _log.info("Training configuration:")
    for name, value in (
        ("Dataset", options.dataset),
        ("Sequence length", options.seq_len),
        ("Number of examples", options.num_examples),
        ("Batch size", options.batch_size),
        ("Learning rate", options.learning_rate),
        ("Number of epochs", options.num_epochs),
        ("CE weight", options.weight_ce),
        ("Precision weight", options.weight_precision),
        ("Objective", options.objective),
        ("Pooling", options.pool),
        ("Available precisions", list(precisions)),
    ):
        _log.info("  - %s: %s", name, value)
