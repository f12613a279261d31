"""Store a causal language model nested, so that its layers can be read with 3 to 8 bits."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layerwise.errors import RecipeError
from layerwise.options import quantize_parser
from layerwise.program import log_to_console, run_program

__all__ = ["main"]

_log = logging.getLogger("layerwise")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    options = quantize_parser().parse_args(arguments)
    log_to_console(debug=options.debug)
    return run_program(lambda: _quantize(options))


def _quantize(options: argparse.Namespace) -> None:
    from layerwise.nested_model import nest_model, save_nested
    from layerwise.program import seed_everything

    seed_everything(options.random_state)
    _log.info("Loading model from %s", options.model)
    model, tokenizer = _tiny(options) if options.model == "tiny-random" else _loaded(options)
    _log.info("Quantizing to %d bits, readable as %s", 8, sorted(set(options.precisions)))
    nest_model(model, group=options.group, precisions=options.precisions)
    path = save_nested(model, options.save_dir, tokenizer)
    size = (path / "model.safetensors").stat().st_size / 2**20
    _log.info("Quantized model saved: %s (%.1f MiB)", path, size)


def _tiny(options: argparse.Namespace) -> tuple[Any, None]:
    from layerwise.tiny_model import source_text, teach, tiny_llama

    model = tiny_llama()
    if options.teach_steps:
        loss = teach(model, source_text(), steps=options.teach_steps, seed=options.random_state)
        _log.info(
            "Taught on %d steps of Python sources: %.4f nats per byte", options.teach_steps, loss
        )
    return model, None


def _loaded(options: argparse.Namespace) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trust = options.trust_remote_code
    try:
        model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype="auto", trust_remote_code=trust
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"found no model {options.model!r} ({reason}); give a folder with config.json and "
            "weights, a name on the hub, or tiny-random"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=trust)
    except (OSError, ValueError):
        _log.warning("found no tokenizer in %s; text will be read as bytes", Path(options.model))
        tokenizer = None
    return model.eval(), tokenizer


if __name__ == "__main__":
    sys.exit(main())
