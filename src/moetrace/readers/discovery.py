"""Which modules of a model are its routers, and why each candidate was taken or left."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from moetrace.readers.base import Reader
from moetrace.readers.standard import StandardRouterReader
from moetrace.readers.structure import (
    declared_routers,
    expert_rows,
    owned_experts,
    scoring_of,
    user_name,
)

__all__ = ["BUILT_IN_READERS", "Site", "discover", "reader_for"]

BUILT_IN_READERS: tuple[Reader, ...] = (StandardRouterReader(),)
"""The readers that `discover` and ``attach`` try after the user's own, in this order."""

_TELLING_NAMES = ("router", "gate", "gating")
_COUNT_ATTRIBUTES = ("num_experts", "n_routed_experts", "num_local_experts", "n_experts")


@dataclass(frozen=True, slots=True)
class Site:
    """One candidate for a router, found at attach.

    Attributes:
        name: Dotted name of its MoE block, as the user knows it.
        path: Dotted path of the router module inside the model that was searched.
        router: Class name of the router module.
        reader: Class name of the reader that reads it, empty where there is none.
        num_experts: E, 0 where unknown.
        top_k: K as the router states it, 0 where it does not.
        scoring: How its logits become probabilities, ``"softmax"`` or ``"sigmoid"``.
        aliases: Further names under which the same module hangs in the model.
        taken: Whether ``attach`` traces it.
        reason: Why it was taken or left, in words.
    """

    name: str
    path: str
    router: str
    reader: str
    num_experts: int
    top_k: int
    scoring: str
    aliases: tuple[str, ...]
    taken: bool
    reason: str


def discover(model: nn.Module, *, readers: Iterable[Reader] | None = None) -> list[Site]:
    """What ``attach`` would trace in this model, and why each candidate was taken or left.

    A module is a candidate when one of the user's readers matches it, when the model declares its
    class as a source of router logits, or when it has a matrix of E rows and stands beside a
    a module that holds E experts. Runs no forward and reads no value off a device.

    Args:
        model: Any module.
        readers: The user's readers, tried before the built-in ones.

    Returns:
        The candidates in the model's order; near misses have ``taken=False``.
    """
    own = tuple(readers or ())
    declared = declared_routers(model)
    paths: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        modules.setdefault(id(module), module)
        paths[id(module)].append(path)
    sites = []
    for key, module in modules.items():
        block_path = paths[key][0].rpartition(".")[0]
        block = model.get_submodule(block_path) if paths[key][0] else None
        site = _consider(module, paths[key], block, own, declared)
        if site is not None:
            sites.append(site)
    return _with_unique_names(sites)


def reader_for(module: nn.Module, readers: Sequence[Reader]) -> Reader | None:
    """The first of the user's readers and then the built-in ones that matches, or None."""
    for reader in (*readers, *BUILT_IN_READERS):
        if reader.matches(module):
            return reader
    return None


def _consider(
    module: nn.Module,
    paths: Sequence[str],
    block: nn.Module | None,
    own: Sequence[Reader],
    declared: set[type],
) -> Site | None:
    rows = expert_rows(module)
    experts = _experts_beside(module, block)
    if any(reader.matches(module) for reader in own):
        reason = "a reader of yours matches it"
    elif any(base in declared for base in type(module).__mro__):
        reason = "the model declares its class as a source of router logits"
    elif rows and rows == experts:
        reason = f"has a matrix of {rows} rows and stands beside {experts} experts"
    elif rows and _sounds_like_one(paths[0]):
        reason = (
            f"is called like a router and has a matrix of {rows} rows, but no experts beside it"
        )
        return _site(module, paths, None, rows, reason)
    else:
        return None
    reader = reader_for(module, own)
    num_experts = rows or experts or _stated(module, _COUNT_ATTRIBUTES)
    if reader is None:
        reason = f"{reason}, but returns bare logits: the choice is made in the block around it"
    elif not num_experts:
        reader, reason = None, f"{reason}, but its number of experts is nowhere to be read"
    return _site(module, paths, reader, num_experts, reason)


def _site(
    module: nn.Module, paths: Sequence[str], reader: Reader | None, num_experts: int, reason: str
) -> Site:
    names = [user_name(path) for path in paths]
    blocks = [name.rpartition(".")[0] or name for name in names]
    return Site(
        name=blocks[0],
        path=paths[0],
        router=type(module).__name__,
        reader=type(reader).__name__ if reader else "",
        num_experts=num_experts,
        top_k=_stated(module, ("top_k",)),
        scoring=scoring_of(module),
        aliases=tuple(blocks[1:]),
        taken=reader is not None,
        reason=reason,
    )


def _experts_beside(module: nn.Module, block: nn.Module | None) -> int | None:
    if block is None:
        return None
    for sibling in block.children():
        if sibling is not module and (count := owned_experts(sibling)):
            return count
    return None


def _stated(module: nn.Module, attributes: Sequence[str]) -> int:
    for attribute in attributes:
        value = getattr(module, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _sounds_like_one(path: str) -> bool:
    return path.rpartition(".")[2].lower() in _TELLING_NAMES


def _with_unique_names(sites: Sequence[Site]) -> list[Site]:
    names = [site.name for site in sites if site.taken]
    return [
        replace(site, name=user_name(site.path))
        if site.taken and names.count(site.name) > 1
        else site
        for site in sites
    ]
