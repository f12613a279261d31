"""Which modules of a model are its routers, and why each candidate was taken or left."""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from moetrace.readers.bare_gate import ExpertsCallReader
from moetrace.readers.base import Reader
from moetrace.readers.block_source import Returned, returned_scores
from moetrace.readers.capacity import choices_by_name, is_limited, limit_of
from moetrace.readers.hand_written import (
    CHOICE_READER,
    bare_gate,
    chooses,
    gate_reader,
    gate_width,
    takes_a_choice,
    turns,
)
from moetrace.readers.lookup import MOST_ROWS, LookupReader, looked_up_experts
from moetrace.readers.modality import kind_of
from moetrace.readers.router_output import RouterReader
from moetrace.readers.structure import (
    PLAIN_LAYERS,
    declared_routers,
    expert_columns,
    expert_rows,
    inner_experts,
    inner_gate,
    owned_experts,
    scoring_of,
)
from moetrace.readers.unread import grouped_gate, unread_experts
from moetrace.readers.wrapping import Core, class_of, cores, unwrapped, user_name

__all__ = ["Found", "Site", "discover", "find_routers"]

_TELLING_NAMES = ("router", "gate", "gating")
_COUNT_ATTRIBUTES = ("num_experts", "n_routed_experts", "num_local_experts", "n_experts")
_CHOICE_ATTRIBUTES = ("top_k", "num_experts_per_tok", "moe_top_k", "num_selected_experts")
_OWN_CHOICE_ATTRIBUTES = (*_CHOICE_ATTRIBUTES, "topk", "top_n", "moe_topk", "k")
_CALLED_SO = re.compile(r"rout|gat(e|ing)|expert|moe|switch|mixture|select|choice", re.IGNORECASE)
_RANKS_ATTRIBUTES = ("ep_size", "world_size")

# One reader for all routers that are read alike: a reader per layer would recompile every block.
_router_reader = functools.lru_cache(maxsize=None)(RouterReader)
_lookup_reader = LookupReader()
_experts_call_reader = functools.lru_cache(maxsize=None)(ExpertsCallReader)


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
        limited: Whether it shows only what a capacity limit has left of its choice.
        kind: The kind of token, 0 for text or 1 for images, that alone comes to it; None where all
            tokens do.
        gate: Name of the gate inside the router, whose logits are taken where the router returns
            none; empty where there is no such gate.
        rule: How the choice is computed again where nothing shows it, in words; empty where what
            the model itself uses is read.
        remedy: The reader that would make it readable, as Python text; empty where it is taken.
        varies: Whether tokens may go to different numbers of experts, going by what it returns.
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
    limited: bool = False
    kind: int | None = None
    gate: str = ""
    rule: str = ""
    remedy: str = ""
    varies: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate with its module, and the reader that reads it where it is taken.

    Attributes:
        site: What is said of it.
        module: What the reader is put on.
        reader: Reads it, or None where it is left.
        missed: Whether there are experts here which nothing counts.
        gate: The module that returns the logits, where that is another one.
        receivers: The listed experts whose rows its rule is held against.
        doubt: Of several candidates in one block the one with the least is taken: 0 for a router
            module, 1 for a bare gate whose block shows what it does with it, more for others.
    """

    site: Site
    module: nn.Module
    reader: Reader | None
    missed: bool = False
    gate: nn.Module | None = None
    receivers: tuple[nn.Module, ...] = ()
    doubt: int = 0

    @property
    def router(self) -> nn.Module:
        """The module whose weights decide.

        The hooked one, but for a gate whose choice is read off its experts: they have none of them.
        """
        if self.gate is None or any(self.gate is part for part in self.module.modules()):
            return self.module
        return self.gate


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
    found = _with_one_gate(found)
    candidates = {id(item.module) for item in found}
    claimed = [path for core in modules if id(core.hooked) in candidates for path in core.paths]
    for core, experts, reason, countable in unread_experts(modules, claimed):
        if takes_a_choice(core.module):
            reason = f"holds {experts} experts and is called with their ids and weights"
            site = _site(core, _experts_call_reader(experts), experts, reason, limited=False)
            found.append(Found(site, core.hooked, _experts_call_reader(experts)))
            continue
        site = _site(core, None, experts, reason, limited=False)
        site = replace(site, remedy=CHOICE_READER if countable else "")
        found.append(Found(site, core.hooked, None, missed=True))
    taken = [f"{item.site.path}." for item in found if item.site.taken]
    # A part of a router that is read (its inner gate, the copies of an adapter) is no near miss.
    found = [item for item in found if not any(item.site.path.startswith(path) for path in taken)]
    found = [
        replace(item, site=replace(item.site, kind=kind_of(model, item.site.path)))
        for item in found
    ]
    return _with_unique_names(found)


def _consider(core: Core, own: Sequence[Reader], declared: dict[type, int]) -> Iterator[Found]:
    module, block = core.module, core.block
    rows = expert_rows(module)
    experts = _experts_beside(core, rows)
    if experts and rows != experts and _stated(module, ("num_gates", *_COUNT_ATTRIBUTES)):
        rows = experts if expert_columns(module) == experts else rows
    index = next((declared[base] for base in type(module).__mro__ if base in declared), None)
    reader = next((reader for reader in own if reader.matches(module)), None)
    if reader is None and isinstance(module, PLAIN_LAYERS):
        rows = None
    num_experts = rows or experts or _stated(module, _COUNT_ATTRIBUTES)
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
            reason = (
                f"{reason}; more than {MOST_ROWS} are not counted: to count groups of them, pass a "
                "reader that returns ids // n"
            )
        else:
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
    site = _site(core, reader, num_experts, reason, limited=limited)
    gate = None
    if reader is not None and index is None and not isinstance(reader, LookupReader):
        if inner := inner_gate(module, num_experts):
            site, gate = replace(site, gate=inner), module.get_submodule(inner)
        scoring = _scoring_shown(module, num_experts, site)
        varies = not site.top_k and not site.limited
        site = replace(site, scoring=scoring, varies=varies)
    yield Found(site, core.hooked, reader, reader is None and bool(experts), gate)


def _with_one_gate(found: Sequence[Found]) -> list[Found]:
    """The candidates without the gates of blocks that have a better one.

    A linear layer beside experts may have as many outputs as there are experts by chance.
    """
    least: dict[str, int] = {}
    for item in found:
        if item.reader is not None:
            least[item.site.name] = min(item.doubt, least.get(item.site.name, item.doubt))
    return [item for item in found if item.doubt <= least.get(item.site.name, item.doubt)]


def _gated(core: Core, block: nn.Module, rows: int | None, experts: int | None) -> int:
    """E of a gate that returns bare logits beside its experts, or in the block that holds them."""
    width = gate_width(core.module) or rows
    if not width or width != (experts or owned_experts(block)) or not _is_called_so(core):
        return 0
    return 0 if _holds_experts(core.module) or chooses(core.module, width) else width


def _bare(core: Core, block: nn.Module, num_experts: int) -> Found:
    """A gate that returns bare logits, with the way in which its block is read, if any."""
    stated = _stated(block, _OWN_CHOICE_ATTRIBUTES)
    how = bare_gate(block, core.module, num_experts, top_k=stated)
    reason = f"returns bare logits of {num_experts} experts; {how.reason}"
    site = replace(
        _site(core, how.reader, num_experts, reason, limited=False),
        top_k=how.rule.top_k if how.rule else stated,
        scoring=(how.rule.scoring if how.rule else "") or _scoring_in(block),
        rule="" if how.rule is None or how.experts is not None else str(how.rule),
        remedy="" if how.reader else gate_reader(core.module, num_experts, stated),
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
    classes = _stated(module, ("num_router_classes",))
    stated = _stated(module, _COUNT_ATTRIBUTES)
    skips = classes > 0 and classes == stated + 1
    num_experts = classes if skips else num_experts
    if not num_experts:
        return None, 0
    returned = Returned() if index is not None else returned_scores(module, num_experts)
    shown = returned.probabilities if returned.logits is None else returned.logits
    reader = _router_reader(
        num_experts,
        top_k=_choice(module, block),
        logits_index=index,
        skips=skips,
        limit=limit_of(module),
        scores_index=shown,
        map_indices=returned.others,
        by_experts=index is None and turns(module),
    )
    return reader, num_experts


def _site(
    core: Core, reader: Reader | None, num_experts: int, reason: str, *, limited: bool
) -> Site:
    names = [user_name(path) for path in core.paths]
    blocks = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return Site(
        name=blocks[0],
        path=core.paths[0],
        router=class_of(core.module).__name__,
        reader=type(reader).__name__ if reader else "",
        num_experts=num_experts,
        top_k=_choice(core.module, core.block),
        scoring=scoring_of(core.module),
        aliases=tuple(blocks[1:]),
        taken=reader is not None,
        reason=reason,
        limited=limited,
    )


def _experts_beside(core: Core, rows: int | None) -> int | None:
    """Experts of a module beside this one, those of all ranks where they are spread over some."""
    if core.block is None:
        return None
    ranks = _stated(core.block, _RANKS_ATTRIBUTES)
    for name, sibling in core.block.named_children():
        sibling = unwrapped(sibling)
        if sibling is core.module:
            continue
        named = "expert" in name.lower()
        if count := owned_experts(sibling) or (inner_experts(sibling) if named else None):
            return rows if ranks > 1 and rows == count * ranks else count
        if named and rows and _stated(sibling, _COUNT_ATTRIBUTES) == rows:
            return rows
    return None


def _is_called_so(core: Core) -> bool:
    """Whether a router, its block or what stands beside it is called one, by attribute or class."""
    assert core.block is not None
    children = dict(core.block.named_children())
    names = [*children, *(class_of(unwrapped(child)).__name__ for child in children.values())]
    return any(_CALLED_SO.search(name) for name in (class_of(core.block).__name__, *names))


def _states_a_choice(module: nn.Module, rows: int) -> bool:
    """Whether a module says itself that it chooses some of as many experts as it has rows."""
    stated = _stated(module, _COUNT_ATTRIBUTES) == rows
    return stated and 0 < _stated(module, _OWN_CHOICE_ATTRIBUTES) <= rows


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
    stated = _stated(module, _OWN_CHOICE_ATTRIBUTES) or choices_by_name(module)
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
