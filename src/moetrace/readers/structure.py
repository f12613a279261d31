"""What the structure of a model says about its routers, before any forward has run.

Nothing here runs the model, reads a value off a device or looks at a class name.
"""

import inspect
import re
from collections.abc import Sequence

from torch import nn

from moetrace.layout import SCORINGS
from moetrace.readers.source import codes_of
from moetrace.readers.wrapping import class_of, unwrapped

__all__ = [
    "COUNT_ATTRIBUTES",
    "IDENTITY_ATTRIBUTES",
    "PLAIN_LAYERS",
    "declared_routers",
    "expert_columns",
    "expert_rows",
    "gate_width",
    "held_experts",
    "idle_at_end",
    "inner_experts",
    "inner_gate",
    "number_stated",
    "numbered_experts",
    "owned_experts",
    "scoring_of",
    "takes_a_choice",
]

PLAIN_LAYERS = (
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.Embedding,
)
"""Layers whose matrices and stacks are what their name says, and neither gates nor experts."""
COUNT_ATTRIBUTES = ("num_experts", "n_routed_experts", "num_local_experts", "n_experts")
"""Names under which a module states its number of experts."""
IDENTITY_ATTRIBUTES = (
    "zero_expert_num",
    "num_zero_experts",
    "n_zero_experts",
    "num_identity_experts",
    "n_identity_experts",
    "num_identity",
)
"""Names under which a module states how many identity or zero experts it has."""
_IDLE = re.compile(r"identity|zero|skip|no_?op|null|pass_?through", re.IGNORECASE)
_NUMBERED = re.compile(r"experts?_?\d+$", re.IGNORECASE)
_EXPERTS_ARGUMENTS = 3
"""Hidden states, ids and weights: the least that experts are called with to choose among them."""

_SCORING_ATTRIBUTES = (
    "scoring_func",
    "score_func",
    "score_function",
    "scoring",
    "expert_selection_fn",
)


def declared_routers(model: nn.Module) -> dict[type, int]:
    """Router classes that the model's own classes declare, with the output that holds the logits.

    transformers models name theirs in ``_can_record_outputs["router_logits"]``, as a class, a
    recorder with a ``target_class`` and an ``index``, or a list of those.
    """
    found: dict[type, int] = {}
    for module in model.modules():
        recorders = getattr(type(module), "_can_record_outputs", None)
        if not isinstance(recorders, dict):
            continue
        declared = recorders.get("router_logits", ())
        for item in declared if isinstance(declared, list | tuple) else (declared,):
            target = getattr(item, "target_class", item)
            index = getattr(item, "index", 0)
            if isinstance(target, type) and isinstance(index, int):
                found[target] = index
    return found


def number_stated(module: nn.Module, attributes: Sequence[str]) -> int:
    """The first of these attributes that is a number above 0; 0 where none is."""
    for attribute in attributes:
        value = getattr(module, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def expert_rows(module: nn.Module) -> int | None:
    """Rows of the module's own matrices: for a router, its number of experts E.

    A matrix that the module holds itself decides; otherwise those of its children (a router may
    keep its matrix in an ``nn.Linear``) have to agree, which those of an MLP do not. None where
    there is no matrix, where they disagree, or where there is a single row.
    """
    own = {p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 2}
    rows = own or {p.shape[0] for p in module.parameters() if p.dim() == 2}
    count = int(rows.pop()) if len(rows) == 1 else 0
    shared = getattr(module, "n_shared_experts", 0)
    if isinstance(shared, int) and getattr(module, "num_experts", None) == count - shared:
        count -= shared  # a row per shared expert too, which every token goes to
    return count if count >= 2 else None


def expert_columns(module: nn.Module) -> int | None:
    """Columns of the one matrix that the module holds itself, for gates that keep it transposed."""
    own = [p for p in module.parameters(recurse=False) if p.dim() == 2]
    return int(own[0].shape[1]) if len(own) == 1 else None


def inner_experts(module: nn.Module) -> int | None:
    """Number of experts in a list that a module holds under a name that says so."""
    for name, child in module.named_children():
        if "expert" in name.lower() and (count := owned_experts(child)):
            return count
    return None


def numbered_experts(block: nn.Module) -> tuple[nn.Module, ...]:
    """Experts that a block holds one by one under numbered names (``expert_0``), of one type."""
    found = tuple(child for name, child in block.named_children() if _NUMBERED.search(name))
    return found if len(found) >= 2 and len({type(child) for child in found}) == 1 else ()


def inner_gate(router: nn.Module, num_experts: int) -> str:
    """Name of the one child of a router that computes the logits of E experts; empty without.

    A plain ``nn.Linear`` with a row per expert, or what a wrapper has made of it.
    """
    gates = [
        name
        for name, child in router.named_children()
        if isinstance(linear := unwrapped(child), nn.Linear)
        and linear.out_features == num_experts
        and type(linear).forward is nn.Linear.forward
    ]
    return gates[0] if len(gates) == 1 else ""


def owned_experts(module: nn.Module) -> int | None:
    """Number of experts that a module itself holds, or None where it holds none.

    Stacked experts are parameters of three dimensions or more that agree on the first, or differ by
    the identity experts that the module states; listed experts are two or more children of one type
    in an ``nn.ModuleList`` or ``nn.ModuleDict``, and identity experts after them.
    """
    if isinstance(module, PLAIN_LAYERS):
        return None
    stacked = {p.shape[0] for p in module.parameters(recurse=False) if p.dim() >= 3}
    if stacked and max(stacked) - min(stacked) == number_stated(module, IDENTITY_ATTRIBUTES):
        stacked = {min(stacked)}
    if len(stacked) == 1 and (count := int(stacked.pop())) >= 2:
        return count
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        children = list(module.children())
        working = children[: len(children) - idle_at_end(module)]
        if len(working) >= 2 and len({type(child) for child in working}) == 1:
            return len(children)
    return None


def idle_at_end(module: nn.Module) -> int:
    """How many of a list's last children have no weights and are called so; 0 where all are."""
    children = list(module.children())
    idle = [
        next(child.parameters(), None) is None and bool(_IDLE.search(type(child).__name__))
        for child in children
    ]
    return next((n for n, one in enumerate(reversed(idle)) if not one), 0)


def held_experts(module: nn.Module) -> int | None:
    """Experts that a module holds itself, or in a list right below it; None without."""
    own = owned_experts(module)
    return own or next((n for child in module.children() if (n := owned_experts(child))), None)


def takes_a_choice(module: nn.Module) -> bool:
    """Whether a module is called with enough to be told which experts each token goes to."""
    forward = class_of(module).forward
    if forward is nn.Module.forward:
        return False
    try:
        taken = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    return len(taken) >= _EXPERTS_ARGUMENTS or any(p.kind is p.VAR_POSITIONAL for p in taken)


def gate_width(module: nn.Module) -> int | None:
    """How many outputs a plain gate has: of an ``nn.Linear``, or the last one of a sequence."""
    if isinstance(module, nn.Sequential):
        linears = [child for child in module.children() if isinstance(child, nn.Linear)]
        return linears[-1].out_features if linears else None
    return module.out_features if isinstance(module, nn.Linear) else None


def scoring_of(router: nn.Module) -> str:
    """What turns this router's first scores into probabilities; a name in `SCORINGS`.

    A string attribute of the router decides where there is one; otherwise the functions that its
    ``forward`` names, or that stand behind the attributes it names. ``"probabilities"`` is a
    router whose ``forward`` holds probabilities and nothing called logits. All of it is known at
    attach, so that no value has to be read off the device.
    """
    for attribute in _SCORING_ATTRIBUTES:
        declared = getattr(router, attribute, None)
        if isinstance(declared, str) and declared in SCORINGS:
            return declared
    codes = list(codes_of(class_of(router).forward, class_of(router)))
    if not codes:
        return "softmax"
    used = [name for code in codes for name in code.co_names]
    called = {name.lower() for name in used}
    for name in used:
        behind = getattr(router, name, None)
        if callable(behind) and not isinstance(behind, nn.Linear):
            called.add(type(behind).__name__.lower())
    if any("sqrtsoftplus" in name for name in called):
        return "sqrtsoftplus"
    if "softmax" not in called and "sigmoid" in called:
        return "sigmoid"
    local = " ".join(name for code in codes for name in code.co_varnames).lower()
    return "probabilities" if "prob" in local and "logit" not in local else "softmax"
