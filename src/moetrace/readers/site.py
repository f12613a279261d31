"""A candidate for a router: what is said of it, and the modules it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from moetrace.readers.base import Reader
from moetrace.readers.capacity import choices_by_name
from moetrace.readers.identity import identity_experts
from moetrace.readers.structure import number_stated, scoring_of
from moetrace.readers.wrapping import Core, class_of, user_name

__all__ = [
    "OWN_CHOICE_ATTRIBUTES",
    "Found",
    "Site",
    "choice_of",
    "site_of",
    "with_one_gate",
    "with_unique_names",
]

_CHOICE_ATTRIBUTES = ("top_k", "num_experts_per_tok", "moe_top_k", "num_selected_experts")
OWN_CHOICE_ATTRIBUTES = (*_CHOICE_ATTRIBUTES, "topk", "top_n", "moe_topk", "k")


@dataclass(frozen=True, slots=True)
class Site:
    """One candidate for a router, found at attach.

    Attributes:
        name: Dotted name of its MoE block, as the user knows it.
        path: Dotted path of the router module inside the model that was searched.
        router: Class name of the router module.
        reader: Class name of the reader that reads it, empty where there is none.
        num_experts: E, 0 where unknown; identity experts are not among them.
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
        identity_experts: How many more can be chosen that compute nothing: identity and zero
            experts, or a class that skips the experts. Their columns come last.
        shared: Whether the aliases are other layers, which use this router too: its counts are of
            all of them together.
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
    identity_experts: int = 0
    shared: bool = False

    @property
    def columns(self) -> int:
        """What the router chooses among: its experts, then its identity experts."""
        return self.num_experts + self.identity_experts


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


def site_of(core: Core, reader: Reader | None, columns: int, reason: str, *, limited: bool) -> Site:
    """What is said of a module, by what it and its block state of themselves.

    Args:
        core: The module.
        reader: Reads it, or None.
        columns: What it chooses among, identity experts too.
        reason: Why it is taken or left.
        limited: Whether it shows only what a capacity limit has left of its choice.
    """
    identity = identity_experts(core.module, core.block, columns)
    if identity:
        reason += f"; the last {identity} of its {columns} columns are of identity experts"
    names = [user_name(path) for path in core.paths]
    blocks = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return Site(
        name=blocks[0],
        path=core.paths[0],
        router=class_of(core.module).__name__,
        reader=type(reader).__name__ if reader else "",
        num_experts=columns - identity,
        top_k=choice_of(core.module, core.block),
        scoring=scoring_of(core.module),
        aliases=tuple(blocks[1:]),
        taken=reader is not None,
        reason=reason,
        limited=limited,
        identity_experts=identity,
    )


def choice_of(module: nn.Module, block: nn.Module | None) -> int:
    """K as the router states it, or else its block; 0 where neither does."""
    stated = number_stated(module, OWN_CHOICE_ATTRIBUTES) or choices_by_name(module)
    return stated or (number_stated(block, _CHOICE_ATTRIBUTES) if block is not None else 0)


def with_one_gate(found: Sequence[Found]) -> list[Found]:
    """The candidates without the gates of blocks that have a better one.

    A linear layer beside experts may have as many outputs as there are experts by chance.
    """
    least: dict[str, int] = {}
    for item in found:
        if item.reader is not None:
            least[item.site.name] = min(item.doubt, least.get(item.site.name, item.doubt))
    return [item for item in found if item.doubt <= least.get(item.site.name, item.doubt)]


def with_unique_names(found: Sequence[Found]) -> list[Found]:
    """The candidates, where two would share a block's name each with the name of its router."""
    names = [item.site.name for item in found if item.site.taken]
    return [
        replace(item, site=replace(item.site, name=user_name(item.site.path)))
        if item.site.taken and names.count(item.site.name) > 1
        else item
        for item in found
    ]
