# pyright: strict
"""Which part of a model a parameter belongs to, by the components of its dotted name.

Whole components are compared, never substrings: the ``attention`` of ``post_attention_layernorm``
is no attention. The outermost component that says something decides, so that the ``c_proj`` of
``mlp.c_proj`` and of ``attn.c_proj`` land where they should.
"""

import re
from dataclasses import dataclass

__all__ = ["GROUPS", "ParameterPlace", "place_of"]

GROUPS = ("embed", "attention", "mlp", "router", "experts", "lm_head", "other")
"""Groups of parameters; every parameter is in exactly one."""

_ATTENTION = re.compile(
    r"(?:[a-z]+_)*[a-z]*(?:attn|attention)(?:_\d+)?|[qkv]_proj|qkv_proj|o_proj|qkv"
)
_EXACT = {
    "embed": {
        *("embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "tok_embeddings"),
        *("embeddings", "word_embeddings", "token_embedding", "position_embeddings", "shared"),
    },
    "lm_head": {"lm_head", "embed_out", "output_projection"},
    "mlp": {
        *("mlp", "ffn", "feed_forward", "feedforward", "block_sparse_moe", "moe", "fc1", "fc2"),
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "shared_expert"),
        *("shared_experts", "shared_mlp", "dense_h_to_4h", "dense_4h_to_h"),
        *("densereludense", "densegatedactdense"),
    },
}
_EXPERTS = frozenset(("experts", "expert"))
_ROUTERS = frozenset(("router", "gate", "shared_expert_gate"))
_LORA = re.compile(r"lora_(?:embedding_)?([AB])")
_ADAPTER_PARTS = frozenset(("base_layer", "modules_to_save", "original_module", "default"))


@dataclass(frozen=True, slots=True)
class ParameterPlace:
    """Where a parameter stands.

    Attributes:
        layer: Dotted name of the repeated block it is in (``model.layers.0``); empty outside.
        group: A name in `GROUPS`.
        part: ``"lora_A"`` or ``"lora_B"`` for the two factors of an adapter, else ``"weight"``.
    """

    layer: str
    group: str
    part: str


def place_of(name: str, *, in_router: bool = False, in_experts: bool = False) -> ParameterPlace:
    """The place of a parameter of this dotted name, as the user knows it.

    Args:
        name: Name of the parameter, without the prefixes of wrappers.
        in_router: Whether a traced router owns it, which outranks its name.
        in_experts: Whether stacked or listed experts own it.

    >>> place_of("model.layers.3.self_attn.q_proj.lora_A.default.weight")
    ParameterPlace(layer='model.layers.3', group='attention', part='lora_A')
    >>> place_of("model.layers.3.post_attention_layernorm.weight").group
    'other'
    """
    path = [part for part in name.split(".") if part not in _ADAPTER_PARTS]
    words = [part.lower() for part in path]
    lora = next((found for part in path if (found := _LORA.fullmatch(part))), None)
    layer, inner = _block(path)
    if in_router:
        group = "router"
    elif in_experts:
        group = "experts"
    else:
        group = _group(words[len(words) - len(inner) :])
    return ParameterPlace(layer, group, f"lora_{lora[1]}" if lora else "weight")


def _block(path: list[str]) -> tuple[str, list[str]]:
    for index, part in enumerate(path[:-1]):
        if part.isdigit() and index > 0:
            return ".".join(path[: index + 1]), path[index + 1 :]
    return "", path


def _group(path: list[str]) -> str:
    modules = path[:-1] or path  # the last component is the parameter's own name
    if any(part in _EXPERTS for part in path):
        return "experts"
    for index, part in enumerate(modules):
        if part in _ROUTERS and index == len(modules) - 1:
            return "router"
        if part in _EXACT["mlp"] and any(later in _ROUTERS for later in modules[index + 1 :]):
            return "router"
        for group, names in _EXACT.items():
            if part in names:
                return group
        if _ATTENTION.fullmatch(part):
            return "attention"
    return "other"
