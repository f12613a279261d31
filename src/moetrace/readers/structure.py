"""What the structure of a model says about its routers, before any forward has run.

Nothing here runs the model, reads a value off a device or looks at a class name.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["declared_routers", "expert_rows", "owned_experts", "scoring_of", "user_name"]

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_LEADING = ("module.", "base_model.model.")


def declared_routers(model: nn.Module) -> set[type]:
    """Router classes that the model's own classes declare as recordable outputs.

    transformers models name theirs in ``_can_record_outputs["router_logits"]``, as a class, a
    recorder with a ``target_class``, or a list of those.
    """
    found: set[type] = set()
    for module in model.modules():
        recorders = getattr(type(module), "_can_record_outputs", None)
        if not isinstance(recorders, dict):
            continue
        declared = recorders.get("router_logits", ())
        for item in declared if isinstance(declared, list | tuple) else (declared,):
            target = getattr(item, "target_class", item)
            if isinstance(target, type):
                found.add(target)
    return found


def expert_rows(module: nn.Module) -> int | None:
    """Rows of the module's own matrices: for a router, its number of experts E.

    A matrix that the module holds itself decides; otherwise those of its children (a router may
    keep its matrix in an ``nn.Linear``) have to agree, which those of an MLP do not. None where
    there is no matrix, where they disagree, or where there is a single row.
    """
    own = {p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 2}
    rows = own or {p.shape[0] for p in module.parameters() if p.dim() == 2}
    count = int(rows.pop()) if len(rows) == 1 else 0
    return count if count >= 2 else None


def owned_experts(module: nn.Module) -> int | None:
    """Number of experts that a module itself holds, or None where it holds none.

    Stacked experts are parameters of three dimensions or more that agree on the first; listed
    experts are two or more children of one type in an ``nn.ModuleList`` or ``nn.ModuleDict``.
    """
    stacked = {p.shape[0] for p in module.parameters(recurse=False) if p.dim() >= 3}
    if len(stacked) == 1 and (count := int(stacked.pop())) >= 2:
        return count
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        children = list(module.children())
        if len(children) >= 2 and len({type(child) for child in children}) == 1:
            return len(children)
    return None


def scoring_of(router: nn.Module) -> str:
    """``"sigmoid"`` or ``"softmax"``: what turns this router's logits into scores.

    A string attribute of the router decides where there is one; otherwise the functions that its
    ``forward`` names. Both known at attach, so that no value has to be read off the device.
    """
    for attribute in ("scoring_func", "score_func", "score_function", "scoring"):
        declared = getattr(router, attribute, None)
        if isinstance(declared, str) and declared in ("sigmoid", "softmax"):
            return declared
    names = set(_names_in(type(router).forward))
    return "sigmoid" if "sigmoid" in names and "softmax" not in names else "softmax"


def user_name(path: str) -> str:
    """A dotted module path as the user knows it, without the wrappers of compile, FSDP and others.

    >>> user_name("module.model.layers.0._orig_mod.mlp")
    'model.layers.0.mlp'
    """
    for prefix in _LEADING:
        path = path.removeprefix(prefix)
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def _names_in(function: Any) -> Iterator[str]:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is not None:
        yield from code.co_names
