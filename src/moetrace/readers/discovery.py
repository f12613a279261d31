"""Which modules of a model are its routers, and why each candidate was taken or left."""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from moetrace.readers.bare_gate import ExpertsCallReader
from moetrace.readers.base import Reader
from moetrace.readers.block_source import Returned, returned_scores
from moetrace.readers.capacity import is_limited, limit_of
from moetrace.readers.hand_written import (
    CHOICE_READER,
    bare_gate,
    chooses,
    gate_reader,
    turns,
)
from moetrace.readers.lookup import MOST_ROWS, LookupReader, looked_up_experts
from moetrace.readers.modality import kind_of
from moetrace.readers.router_output import RouterReader
from moetrace.readers.site import (
    OWN_CHOICE_ATTRIBUTES,
    Found,
    Site,
    choice_of,
    site_of,
    with_one_gate,
    with_unique_names,
)
from moetrace.readers.structure import (
    COUNT_ATTRIBUTES,
    IDENTITY_ATTRIBUTES,
    PLAIN_LAYERS,
    declared_routers,
    expert_columns,
    expert_rows,
    gate_width,
    inner_experts,
    inner_gate,
    number_stated,
    numbered_experts,
    owned_experts,
    scoring_of,
    takes_a_choice,
)
from moetrace.readers.unread import grouped_gate, unread_experts
from moetrace.readers.wrapping import Core, class_of, cores, unwrapped, user_name

__all__ = ["discover", "find_routers"]

INDEX_READER = "IndexMeter"
"""Stands for a reader where a table's look-ups are counted and no routing is."""

_TELLING_NAMES = ("router", "gate", "gating")
_CALLED_SO = re.compile(r"rout|gat(e|ing)|expert|moe|switch|mixture|select|choice", re.IGNORECASE)
_RANKS_ATTRIBUTES = ("ep_size", "world_size")

# One reader for all routers that are read alike: a reader per layer would recompile every block.
_router_reader = functools.lru_cache(maxsize=None)(RouterReader)
_lookup_reader = LookupReader()
_experts_call_reader = functools.lru_cache(maxsize=None)(ExpertsCallReader)


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
    found: list[Found] = []
    modules = list(cores(model))
    for core in modules:
        found += _consider(core, readers, declared)
    found = with_one_gate(found)
    candidates = {id(item.module) for item in found}
    claimed = [path for core in modules if id(core.hooked) in candidates for path in core.paths]
    for core, experts, reason, countable in unread_experts(modules, claimed):
        if takes_a_choice(core.module):
            reason = f"holds {experts} experts and is called with their ids and weights"
            site = site_of(core, _experts_call_reader(experts), experts, reason, limited=False)
            found.append(Found(site, core.hooked, _experts_call_reader(experts)))
            continue
        site = site_of(core, None, experts, reason, limited=False)
        site = replace(site, remedy=CHOICE_READER if countable else "")
        found.append(Found(site, core.hooked, None, missed=True))
    taken = [f"{item.site.path}." for item in found if item.site.taken]
    # A part of a router that is read (its inner gate, the copies of an adapter) is no near miss.
    found = [item for item in found if not any(item.site.path.startswith(path) for path in taken)]
    paths = {id(core.hooked): core.paths for core in modules}
    found = [
        replace(item, site=_placed(item.site, model, paths[id(item.module)])) for item in found
    ]
    return with_unique_names(found)


def _placed(site: Site, model: nn.Module, paths: Sequence[str]) -> Site:
    """A site with what its places in the model say of it."""
    site = replace(site, kind=kind_of(model, site.path))
    layers = {id(model.get_submodule(path.rpartition(".")[0])) for path in paths if "." in path}
    if len(layers) < 2:
        return site
    reason = f"{site.reason}; {len(layers)} layers share it, and its counts are of all together"
    return replace(site, shared=True, reason=reason)


def _consider(core: Core, own: Sequence[Reader], declared: dict[type, int]) -> Iterator[Found]:
    module, block = core.module, core.block
    rows = expert_rows(module)
    experts = _experts_beside(core, rows)
    if experts and rows != experts and number_stated(module, ("num_gates", *COUNT_ATTRIBUTES)):
        rows = experts if expert_columns(module) == experts else rows
    index = next((declared[base] for base in type(module).__mro__ if base in declared), None)
    reader = next((reader for reader in own if reader.matches(module)), None)
    if reader is None and isinstance(module, PLAIN_LAYERS):
        rows = None
    num_experts = rows or experts or number_stated(module, COUNT_ATTRIBUTES)
    name = user_name(core.paths[0]).rpartition(".")[2]
    telling = name.lower() in _TELLING_NAMES
    if reader is not None:
        reason = "a reader of yours matches it"
        if not num_experts:
            reader, reason = None, f"{reason}, but its number of experts is nowhere to be read"
    elif block is not None and _is_table_of_experts(module, block):
        assert isinstance(module, nn.Embedding)
        num_experts = module.num_embeddings
        reason = f"one of two tables of {num_experts} experts that product keys choose from"
        if num_experts > MOST_ROWS:
            reason = f"{reason}; more than {MOST_ROWS} are counted by the index probe"
            site = site_of(core, None, num_experts, reason, limited=False)
            yield Found(replace(site, reader=INDEX_READER, taken=True), core.hooked, None)
            return
        reader = _lookup_reader
    elif index is not None and not _holds_experts(module):
        reason = "the model declares its class as a source of router logits"
        reader, num_experts = _router(module, block, num_experts, index)
    elif block is not None and (gated := _gated(core, block, rows, experts)):
        yield _bare(core, block, gated)
        return
    elif rows and rows == experts and not _holds_experts(module) and not _is_called_so(core):
        reason = (
            f"has a matrix of {rows} rows and stands beside {experts} equal modules, but nothing "
            "here is called a router, a gate or experts; if it chooses among them, pass a reader"
        )
        experts = None
    elif rows and rows == experts and not _holds_experts(module):
        reason = f"has a matrix of {rows} rows and stands beside {experts} experts"
        reader, num_experts = _router(module, block, rows, None)
    elif experts and telling and gate_width(module) is None and not _holds_experts(module):
        reason = f"is called like a router and stands beside {experts} experts"
        reader, num_experts = _router(module, block, experts, None)
    elif rows and telling and _states_a_choice(module, rows):
        reason = f"has a matrix of {rows} rows and says how many of {rows} experts it chooses"
        reader, num_experts = _router(module, block, rows, None)
    elif rows and telling:
        reason = (
            f"is called like a router and has a matrix of {rows} rows, but no experts beside it; "
            "if it is one, pass a reader for it"
        )
    elif groups := grouped_gate(module, name):
        reason = (
            f"has a matrix for each of {groups} groups: it chooses within a group, among slots of "
            "which some are filled up with zeros, and those cannot be told apart; the choice of "
            "groups is counted where their gate is read"
        )
    else:
        return
    limited = reader is not None and is_limited(module)
    if limited:
        reason += "; it shows what a capacity limit has left, the rest is counted as dropped"
    site = site_of(core, reader, num_experts, reason, limited=limited)
    gate = None
    if reader is not None and index is None and not isinstance(reader, LookupReader):
        if inner := inner_gate(module, num_experts):
            site, gate = replace(site, gate=inner), module.get_submodule(inner)
        scoring = _scoring_shown(module, num_experts, site)
        varies = not site.top_k and not site.limited
        site = replace(site, scoring=scoring, varies=varies)
    yield Found(site, core.hooked, reader, reader is None and bool(experts), gate)


def _gated(core: Core, block: nn.Module, rows: int | None, experts: int | None) -> int:
    """E of a gate that returns bare logits beside its experts, or in the block that holds them."""
    width = gate_width(core.module) or rows
    if not width or width != (experts or owned_experts(block)) or not _is_called_so(core):
        return 0
    return 0 if _holds_experts(core.module) or chooses(core.module, width) else width


def _bare(core: Core, block: nn.Module, num_experts: int) -> Found:
    """A gate that returns bare logits, with the way in which its block is read, if any."""
    stated = number_stated(block, OWN_CHOICE_ATTRIBUTES)
    how = bare_gate(block, core.module, num_experts, top_k=stated)
    reason = f"returns bare logits of {num_experts} experts; {how.reason}"
    site = replace(
        site_of(core, how.reader, num_experts, reason, limited=False),
        top_k=how.rule.top_k if how.rule else stated,
        scoring=(how.rule.scoring if how.rule else "") or _scoring_in(block),
        rule="" if how.rule is None or how.experts is not None else str(how.rule),
        remedy=""
        if how.reader
        else gate_reader(core.module, num_experts, how.rule.top_k)
        if how.rule
        else CHOICE_READER,
    )
    name = user_name(core.paths[0]).rpartition(".")[2].lower()
    doubt = 1 if how.rule else 2 if name in _TELLING_NAMES else 3
    if how.experts is None:
        missed = how.reader is None
        return Found(site, core.hooked, how.reader, missed, None, how.receivers, doubt)
    around = core.paths[0].rpartition(".")[0]
    inside = next(name for name, inner in block.named_modules() if inner is how.experts)
    site = replace(site, path=f"{around}.{inside}" if around else inside)
    # Not surely the gate: what its experts are called with is counted, and no scores.
    return Found(
        site, how.experts, how.reader, False, core.hooked if doubt < 3 else None, (), doubt
    )


def _scoring_shown(router: nn.Module, num_experts: int, site: Site) -> str:
    """What turns the scores that are read of a router into probabilities, as its source shows it.

    Where it returns probabilities alone those are read, and its logits where it returns them, or
    where those of its inner gate are all that is seen.
    """
    returned = returned_scores(router, num_experts)
    if returned.logits is None and returned.probabilities is not None:
        return "probabilities"
    if returned.logits is not None or site.gate:
        return _scoring_in(router)
    return site.scoring


def _scoring_in(block: nn.Module) -> str:
    """What a block makes of its gate's logits, which are no probabilities, whatever it says."""
    found = scoring_of(block)
    return "softmax" if found == "probabilities" else found


def _router(
    module: nn.Module, block: nn.Module | None, num_experts: int, index: int | None
) -> tuple[Reader | None, int]:
    """The reader of a router module and its E, counting a class that skips the experts."""
    classes = number_stated(module, ("num_router_classes",))
    stated = number_stated(module, COUNT_ATTRIBUTES)
    skips = classes > 0 and classes == stated + 1
    num_experts = classes if skips else num_experts
    if not num_experts:
        return None, 0
    returned = Returned() if index is not None else returned_scores(module, num_experts)
    shown = returned.probabilities if returned.logits is None else returned.logits
    reader = _router_reader(
        num_experts,
        top_k=choice_of(module, block),
        logits_index=index,
        skips=skips,
        limit=limit_of(module),
        scores_index=shown,
        map_indices=returned.others,
        by_experts=index is None and turns(module),
    )
    return reader, num_experts


def _experts_beside(core: Core, rows: int | None) -> int | None:
    """Experts of a module beside this one, those of all ranks where they are spread over some.

    Identity experts that somebody states are among them, where the rows are.
    """
    if core.block is None:
        return None
    ranks = number_stated(core.block, _RANKS_ATTRIBUTES)
    for name, sibling in core.block.named_children():
        sibling = unwrapped(sibling)
        if sibling is core.module:
            continue
        named = "expert" in name.lower()
        if count := owned_experts(sibling) or (inner_experts(sibling) if named else None):
            parts = (core.module, core.block, sibling)
            more = max(number_stated(part, IDENTITY_ATTRIBUTES) for part in parts)
            whole = (count * ranks if ranks > 1 else count, count + more)
            return rows if rows in whole else count
        if named and rows and number_stated(sibling, COUNT_ATTRIBUTES) == rows:
            return rows
    return len(numbered_experts(core.block)) or None


def _is_called_so(core: Core) -> bool:
    """Whether a router, its block or what stands beside it is called one, by attribute or class."""
    assert core.block is not None
    children = dict(core.block.named_children())
    names = [*children, *(class_of(unwrapped(child)).__name__ for child in children.values())]
    return any(_CALLED_SO.search(name) for name in (class_of(core.block).__name__, *names))


def _states_a_choice(module: nn.Module, rows: int) -> bool:
    """Whether a module says itself that it chooses some of as many experts as it has rows."""
    stated = number_stated(module, COUNT_ATTRIBUTES) == rows
    return stated and 0 < number_stated(module, OWN_CHOICE_ATTRIBUTES) <= rows


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
