"""A tiny quantised model, a text, and the options of a training on them."""

import argparse
from pathlib import Path

import torch
from layerwise.causal_lm import LayerwiseQuantizeForCausalLM
from layerwise.nested_model import nest_model, save_nested
from layerwise.options import training_parser
from layerwise.tiny_model import tiny_llama

PRECISIONS = [3, 4, 5, 6, 7, 8]
TEXT = "".join(f"{number} is {number * number} when squared;\n" for number in range(400))


def quantized(folder: Path, *, layers: int = 2) -> Path:
    """A random Llama of 16 dimensions over bytes, quantised into a folder."""
    torch.manual_seed(0)
    model = tiny_llama(width=16, layers=layers, length=64)
    return save_nested(nest_model(model, group=16, precisions=PRECISIONS), folder)


def loaded(folder: Path, *, pool: str = "prefix:4", **options) -> LayerwiseQuantizeForCausalLM:
    """The model of that folder, with the same new routers each time."""
    torch.manual_seed(0)
    return LayerwiseQuantizeForCausalLM.from_quantized(folder, pool=pool, **options)


def chooses(model: LayerwiseQuantizeForCausalLM, *bits: int) -> LayerwiseQuantizeForCausalLM:
    """Make each router sure of one precision: its probability is 1 to the last digit."""
    with torch.no_grad():
        for layer, precision in zip(model.layers, bits, strict=True):
            layer.router.weight.zero_()
            layer.router.bias.zero_()
            layer.router.bias[model.precisions.index(precision)] = 200.0
    return model


def opinionated(model: LayerwiseQuantizeForCausalLM) -> LayerwiseQuantizeForCausalLM:
    """Make the routers choose by what they see: another sequence, another precision."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.layers:
            weight = layer.router.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 30)
            layer.router.bias.zero_()
    return model


def tokens(rows: int = 3, length: int = 16, *, seed: int = 0) -> torch.Tensor:
    """Random bytes."""
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def options(model: Path, folder: Path, text: Path, *words: str) -> argparse.Namespace:
    """Those of a training of 8 pieces of 16 bytes in two batches, with 4 more to validate."""
    small = f"{model} --dataset {text} --seq_len 16 --num_examples 8 --pool prefix:4"
    small += f" --val_examples 4 --save_dir {folder / 'out'} --num_epochs 2"
    return training_parser().parse_args([*small.split(), *words])
