"""What each architecture is called with, and which tokens of it are real."""

import inspect
from typing import Any

import torch
from torch import nn

__all__ = ["inputs_of"]


def inputs_of(model: nn.Module, seed: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What to call the model with, and which tokens of it are real.

    Returns:
        The keyword arguments, and the masks by the part of the model that they hold for: ``""`` for
        any, or the name of a module that a site lies below. A part without one has no padding.
    """
    generator = torch.Generator().manual_seed(seed)
    make = _INPUTS.get(type(model).__name__, _of_text)
    inputs, masks = make(model, generator)
    return {**inputs, "use_cache": False} if _takes_a_cache(model) else inputs, masks


def _of_text(model: nn.Module, generator: torch.Generator) -> Any:
    """Two rows of 12 token ids, the first with 5 tokens of padding on its left."""
    ids, mask = _ids(generator, 12), _mask(12, padding=5)
    return {"input_ids": ids, "attention_mask": mask}, {"": mask}


def _of_two_texts(model: nn.Module, generator: torch.Generator) -> Any:
    """A text for each side, of one length: the mask of one would fit the other and be wrong."""
    inputs, masks = _of_text(model, generator)
    own = _mask(12, padding=3).flip(0, 1)
    inputs |= {"decoder_input_ids": _ids(generator, 12), "decoder_attention_mask": own}
    return inputs, {"encoder": masks[""], "decoder": own}


def _of_a_canvas(model: nn.Module, generator: torch.Generator) -> Any:
    """A padded prompt and a canvas of the same length, which has no padding."""
    inputs, masks = _of_text(model, generator)
    return {**inputs, "decoder_input_ids": _ids(generator, 12)}, {"encoder": masks[""]}


def _of_images(model: nn.Module, generator: torch.Generator) -> Any:
    """Patches of two images, 16 and 8; no token of an image is padding."""
    pixels = torch.randn(24, 3 * 2 * 2, generator=generator)
    grid = torch.tensor([[1, 4, 4], [1, 2, 4]])
    return {"pixel_values": pixels, "grid_thw": grid}, {}


def _of_data_sets(model: nn.Module, generator: torch.Generator) -> Any:
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    return {"pixel_values": pixels, "dataset_index": torch.tensor([0, 3])}, {}


def _of_embeddings(model: nn.Module, generator: torch.Generator) -> Any:
    mask = _mask(12, padding=5)
    embeddings = torch.randn(2, 12, 32, generator=generator)
    return {"inputs_embeds": embeddings, "attention_mask": mask}, {"": mask}


def _of_two_modalities(model: nn.Module, generator: torch.Generator) -> Any:
    """Tokens 4 to 8 of each row are of an image and go to experts of their own."""
    inputs, masks = _of_text(model, generator)
    kinds = torch.zeros(2, 12, dtype=torch.int32)
    kinds[:, 4:9] = 1
    masks = {"text_moe": masks[""][kinds == 0], "vision_moe": masks[""][kinds == 1]}
    return {**inputs, "moe_mm_token_type_ids": kinds}, masks


def _ids(generator: torch.Generator, length: int) -> torch.Tensor:
    return torch.randint(2, 60, (2, length), generator=generator)


def _mask(length: int, *, padding: int) -> torch.Tensor:
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[0, :padding] = 0
    return mask


def _takes_a_cache(model: nn.Module) -> bool:
    return "use_cache" in inspect.signature(type(model).forward).parameters


_INPUTS: dict[str, Any] = {
    "Dots3NoteVisionModel": _of_images,
    "VitPoseBackbone": _of_data_sets,
    "Qwen3OmniMoeTalkerModel": _of_embeddings,
    "Ernie4_5_VLMoeTextModel": _of_two_modalities,
    "DiffusionGemmaForBlockDiffusion": _of_a_canvas,
    "NllbMoeForConditionalGeneration": _of_two_texts,
    "SwitchTransformersForConditionalGeneration": _of_two_texts,
}
"""How a model is called that takes more or less than token ids and their mask."""
