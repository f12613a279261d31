"""Which modules of a model are its routers, and why each candidate was taken or left."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from moetrace.readers.base import Reader
from moetrace.readers.lookup import MOST_ROWS, LookupReader, looked_up_experts
from moetrace.readers.router_output import RouterReader
from moetrace.readers.structure import (
    declared_routers,
    expert_rows,
    owned_experts,
    scoring_of,
    user_name,
)

__all__ = ["Found", "Site", "discover", "find_routers"]

_TELLING_NAMES = ("router", "gate", "gating")
_COUNT_ATTRIBUTES = ("num_experts", "n_routed_experts", "num_local_experts", "n_experts")
_CHOICE_ATTRIBUTES = ("top_k", "num_experts_per_tok", "moe_top_k", "num_selected_experts")

# One reader for all routers that are read alike: a reader per layer would recompile every block.
_router_reader = functools.lru_cache(maxsize=None)(RouterReader)
_lookup_reader = LookupReader()


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
        scoring: How its logits become probabilities, a name in `moetrace.layout.SCORINGS`.
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


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate with its module, and the reader that reads it where it is taken."""

    site: Site
    module: nn.Module
    reader: Reader | None


def discover(model: nn.Module, *, readers: Iterable[Reader] | None = None) -> list[Site]:
    """What ``attach`` would trace in this model, and why each candidate was taken or left.

    A module is a candidate when one of the user's readers matches it, when the model declares its
    class as a source of router logits, when it has a matrix of E rows and stands beside a module
    that holds E experts, or when it is the table of experts of a product-key layer. Runs no forward
    and reads no value off a device.

    Args:
        model: Any module.
        readers: The user's readers, tried before the built-in ones.

    Returns:
        The candidates in the model's order; near misses have ``taken=False``.
    """
    return [found.site for found in find_routers(model, tuple(readers or ()))]


def find_routers(model: nn.Module, readers: Sequence[Reader]) -> list[Found]:
    """The candidates of `discover`, with their modules and readers."""
    declared = declared_routers(model)
    paths: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        modules.setdefault(id(module), module)
        paths[id(module)].append(path)
    found: list[Found] = []
    for key, module in modules.items():
        block_path = paths[key][0].rpartition(".")[0]
        block = model.get_submodule(block_path) if paths[key][0] else None
        found += _consider(module, paths[key], block, readers, declared)
    return _with_unique_names(found)


def _consider(
    module: nn.Module,
    paths: Sequence[str],
    block: nn.Module | None,
    own: Sequence[Reader],
    declared: dict[type, int],
) -> Iterator[Found]:
    rows = expert_rows(module)
    experts = _experts_beside(module, block)
    index = next((declared[base] for base in type(module).__mro__ if base in declared), None)
    reader = next((reader for reader in own if reader.matches(module)), None)
    num_experts = rows or experts or _stated(module, _COUNT_ATTRIBUTES)
    if reader is not None:
        reason = "a reader of yours matches it"
        if not num_experts:
            reader, reason = None, f"{reason}, but its number of experts is nowhere to be read"
    elif block is not None and _is_table_of_experts(module, block):
        assert isinstance(module, nn.Embedding)
        num_experts = module.num_embeddings
        reason = f"one of two tables of {num_experts} experts that product keys choose from"
        if num_experts > MOST_ROWS:
            reason = f"{reason}; more than {MOST_ROWS} are not counted"
        else:
            reader = _lookup_reader
    elif index is not None and not _holds_experts(module):
        reason = "the model declares its class as a source of router logits"
        reader, num_experts = _router(module, block, num_experts, index)
    elif rows and rows == experts:
        reason = f"has a matrix of {rows} rows and stands beside {experts} experts"
        if type(module).forward is nn.Linear.forward:
            reason += ", but returns bare logits: the choice is made in the block around it"
        else:
            reader, num_experts = _router(module, block, rows, None)
    elif rows and paths[0].rpartition(".")[2].lower() in _TELLING_NAMES:
        reason = (
            f"is called like a router and has a matrix of {rows} rows, but no experts beside it"
        )
    else:
        return
    yield Found(_site(module, paths, block, reader, num_experts, reason), module, reader)


def _router(
    module: nn.Module, block: nn.Module | None, num_experts: int, index: int | None
) -> tuple[Reader | None, int]:
    """The reader of a router module and its E, counting a class that skips the experts."""
    classes = _stated(module, ("num_router_classes",))
    stated = _stated(module, _COUNT_ATTRIBUTES)
    skips = classes > 0 and classes == stated + 1
    num_experts = classes if skips else num_experts
    if not num_experts:
        return None, 0
    top_k = _choice(module, block)
    return _router_reader(num_experts, top_k=top_k, logits_index=index, skips=skips), num_experts


def _site(
    module: nn.Module,
    paths: Sequence[str],
    block: nn.Module | None,
    reader: Reader | None,
    num_experts: int,
    reason: str,
) -> Site:
    names = [user_name(path) for path in paths]
    blocks = [name.rpartition(".")[0] or name for name in names]
    return Site(
        name=blocks[0],
        path=paths[0],
        router=type(module).__name__,
        reader=type(reader).__name__ if reader else "",
        num_experts=num_experts,
        top_k=_choice(module, block),
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


def _holds_experts(module: nn.Module) -> bool:
    """Whether it is the block itself that a model declares, and not the router in it."""
    return any(
        owned_experts(inner) or isinstance(inner, nn.Embedding)
        for inner in module.modules()
        if inner is not module
    )


def _is_table_of_experts(module: nn.Module, block: nn.Module) -> bool:
    if not isinstance(module, nn.Embedding):
        return False
    tables = looked_up_experts(block)
    return tables is not None and tables[0] is module


def _choice(module: nn.Module, block: nn.Module | None) -> int:
    """K as the router states it, or else its block; 0 where neither does."""
    stated = _stated(module, _CHOICE_ATTRIBUTES)
    return stated or (_stated(block, _CHOICE_ATTRIBUTES) if block is not None else 0)


def _stated(module: nn.Module, attributes: Sequence[str]) -> int:
    for attribute in attributes:
        value = getattr(module, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _with_unique_names(found: Sequence[Found]) -> list[Found]:
    names = [item.site.name for item in found if item.site.taken]
    return [
        replace(item, site=replace(item.site, name=user_name(item.site.path)))
        if item.site.taken and names.count(item.site.name) > 1
        else item
        for item in found
    ]
