"""What stands around a module and is no part of the model: compile, FSDP, checkpoints, adapters.

A wrapper is known by the name under which it holds what it wraps, as nothing else is called that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

__all__ = ["Core", "class_of", "cores", "hangs_at", "unwrapped", "user_name"]

_CALLS_IT = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Wrappers that call what they wrap once per forward and return what it returned."""
_CHANGES_IT = {"base_layer": "BaseTunerLayer", "original_module": "AuxiliaryTrainingWrapper"}
"""Adapters of PEFT by what they hold: what they return is what the model gets of it."""
_WRAPPED = (*_CALLS_IT, *_CHANGES_IT)
_COPIES = "modules_to_save"
_INSIDE = "deepspeed_moe"
"""What a package's own layer calls the block in it; the user knows the layer."""
_LEADING = (("base_model", "model"), ("module",))


@dataclass(frozen=True, slots=True)
class Core:
    """A module of the model with what is wrapped around it.

    Attributes:
        paths: Every dotted path under which it hangs in the model, up to ``hooked``.
        module: The module itself, without its wrappers: what its structure is read from.
        hooked: The one whose output the model gets; `module` where no adapter is around it.
        block: The module around it that is no wrapper, or None for the root.
    """

    paths: tuple[str, ...]
    module: nn.Module
    hooked: nn.Module
    block: nn.Module | None


def cores(model: nn.Module) -> Iterator[Core]:
    """Every module of the model once, with the wrappers around it and all of its paths."""
    paths: dict[int, list[str]] = {}
    found: dict[int, tuple[nn.Module, nn.Module | None]] = {}
    reached = dict(model.named_modules(remove_duplicate=False))
    for path, module in reached.items():
        parts = path.split(".") if path else []
        if _is_wrapped(reached, parts) or _is_spare(reached, parts):
            continue
        hooked, hooked_path = module, parts
        while (name := _inside(hooked)) in _CALLS_IT:
            hooked, hooked_path = hooked.get_submodule(name), [*hooked_path, name]
        if id(hooked) not in found:
            found[id(hooked)] = hooked, reached[".".join(parts[:-1])] if parts else None
        paths.setdefault(id(hooked), []).append(".".join(hooked_path))
    for key, (hooked, block) in found.items():
        around = None if block is None else unwrapped(block)
        yield Core(tuple(paths[key]), unwrapped(hooked), hooked, around)


def unwrapped(module: nn.Module) -> nn.Module:
    """What all wrappers around a module hold in the end; the module itself where there is none."""
    while name := _inside(module):
        module = module.get_submodule(name)
    return module


def hangs_at(model: nn.Module, path: str, module: nn.Module) -> bool:
    """Whether a module that was found at ``path`` still runs there, whatever wraps it by now.

    False once something else hangs there, or where an adapter runs a copy in its place.
    """
    at: nn.Module | None = model
    for part in filter(None, path.split(".")):
        while at is not None and part not in at._modules:
            at = _running(at)
        at = None if at is None else at._modules[part]
    while at is not None and at is not module:
        at = _running(at)
    return at is not None


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class that the user wrote: FSDP2 gives an instance a class of its own, ``FSDP...``."""
    bases: tuple[type, ...] = type(module).__bases__
    if bases[0].__name__ == "FSDPModule" and bases[1:]:
        return bases[1]
    return type(module)


def user_name(path: str) -> str:
    """A dotted module path as the user knows it, without the wrappers of compile, FSDP and others.

    >>> user_name("module.model.layers.0._orig_mod.mlp")
    'model.layers.0.mlp'
    >>> user_name("_orig_mod.base_model.model.lm.mlp.gate.modules_to_save.default")
    'lm.mlp.gate'
    """
    parts: list[str] = []
    remaining = iter(path.split("."))
    for part in remaining:
        if part == _COPIES:
            next(remaining, None)  # the name of the adapter
        elif part not in (*_WRAPPED, _INSIDE):
            parts.append(part)
    stripped = True
    while stripped:
        stripped = False
        for leading in _LEADING:
            if tuple(parts[: len(leading)]) == leading and len(parts) > len(leading):
                parts, stripped = parts[len(leading) :], True
    return ".".join(parts)


def _inside(module: nn.Module) -> str:
    """The name under which a wrapper holds what it wraps; empty for what is no wrapper."""
    for name in _CALLS_IT:
        if isinstance(module._modules.get(name), nn.Module):
            return name
    for name, wrapper in _CHANGES_IT.items():
        if name in module._modules and any(c.__name__ == wrapper for c in type(module).__mro__):
            return name
    return ""


def _running(wrapper: nn.Module) -> nn.Module | None:
    """What a wrapper calls; None for what is no wrapper."""
    copies = wrapper._modules.get(_COPIES)
    name = _inside(wrapper)
    if name == "original_module" and copies is not None and len(list(copies.children())) > 0:
        return next(copies.children())
    return wrapper.get_submodule(name) if name else None


def _is_wrapped(reached: dict[str, nn.Module], parts: list[str]) -> bool:
    """Whether the path ends in what a wrapper holds: that is reached through the wrapper."""
    if len(parts) > 1 and parts[-2] == _COPIES:
        return True
    return bool(parts) and _inside(reached[".".join(parts[:-1])]) == parts[-1]


def _is_spare(reached: dict[str, nn.Module], parts: list[str]) -> bool:
    """Whether the path leads through an original of which an adapter runs a copy."""
    for index in [i for i, part in enumerate(parts) if part == "original_module"]:
        copies = reached[".".join(parts[:index])]._modules.get(_COPIES)
        if copies is not None and len(list(copies.children())) > 0:
            return True
    return False
