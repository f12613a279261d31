"""What to do about a gate that returns bare logits, from the structure of the block around it."""

import functools
import re
from dataclasses import dataclass

from torch import nn

from moetrace.readers.bare_gate import BareGateReader, ExpertsCallReader
from moetrace.readers.base import Reader
from moetrace.readers.block_source import choice_rule, returned_scores, returns_one_value
from moetrace.readers.choice_rule import ChoiceRule, NoChoiceRule
from moetrace.readers.identity import identity_experts
from moetrace.readers.source import names_in
from moetrace.readers.structure import held_experts, numbered_experts, owned_experts, takes_a_choice
from moetrace.readers.wrapping import class_of, unwrapped

__all__ = [
    "CHOICE_READER",
    "PASS_ON",
    "BareGate",
    "bare_gate",
    "chooses",
    "gate_reader",
    "turns",
]

_CHOOSING = re.compile(
    r"^gather|top_?k|top_?\d|arg(max|sort|topk)|\bsort|multinomial|scatter|one_hot|gumbel|where|mask"
    r"|(^|_)routes?(_|$)|select|choo?s|choice|spars|nonzero|bincount|quantile|searchsorted|sinkhorn"
)
# One reader for all blocks that choose alike: a reader per layer would recompile every block.
_bare_gate_reader = functools.lru_cache(maxsize=None)(BareGateReader)


@dataclass(frozen=True, slots=True)
class BareGate:
    """How a block with a bare gate is read, or why it is not.

    Attributes:
        reason: How the choice is read, or why it is not; to be put after "returns bare logits".
        reader: Reads the choice, or None where it is not readable.
        experts: The module of the experts, where the choice is read off its call.
        receivers: The listed experts whose rows the rule is held against.
        rule: How the block chooses, where its source shows it.
    """

    reason: str
    reader: Reader | None = None
    experts: nn.Module | None = None
    receivers: tuple[nn.Module, ...] = ()
    rule: ChoiceRule | None = None


def bare_gate(block: nn.Module, gate: nn.Module, experts: int, *, top_k: int) -> BareGate:
    """How to read the choice of a block whose gate shows its logits only.

    What the experts are called with comes first: that is what runs. Where they are called one by
    one the choice is computed again by the rule that the block's source shows, and held against the
    rows that each of them gets.

    Args:
        block: The block.
        gate: The child of it that returns logits.
        experts: E, and its identity experts.
        top_k: K where the block states it, else 0.
    """
    siblings = [unwrapped(child) for child in block.children() if unwrapped(child) is not gate]
    name = next(name for name, child in block.named_children() if unwrapped(child) is gate)
    working = experts - identity_experts(gate, block, experts)
    rule, trouble = None, ""
    try:
        rule = choice_rule(block, name, stated=top_k)
    except NoChoiceRule as error:
        trouble = str(error)
    for sibling in siblings:
        if held_experts(sibling) in (experts, working) and takes_a_choice(sibling):
            called = ExpertsCallReader(experts, top_k=rule.top_k if rule else top_k)
            return BareGate(
                "the choice is what its experts are called with", called, sibling, rule=rule
            )
    if rule is None:
        reason = f"the choice is made in the block around it, but {trouble}; {PASS_ON}"
        return BareGate(reason)
    listed = (*(_listed(sibling) for sibling in siblings), numbered_experts(block))
    receivers = next((found for found in listed if len(found) == experts), ())
    if not receivers:
        reason = f"its block seems to take {rule}, but nothing that it calls shows whether it does"
        return BareGate(reason, rule=rule)
    if any(step.attribute for step in rule.steps):
        reader = BareGateReader(experts, rule, block)
    else:
        reader = _bare_gate_reader(experts, rule)
    reason = f"its block takes {rule}, which is held against the rows that its experts get"
    return BareGate(reason, reader, receivers=receivers, rule=rule)


def chooses(module: nn.Module, num_experts: int) -> bool:
    """Whether a module may choose by itself, going by the names in its code and what it returns.

    False for an ``nn.Linear``, a sequence of layers, and a module of one's own that scores only.
    """
    own = [m for m in module.modules() if not class_of(m).__module__.startswith("torch.nn")]
    return any(
        _CHOOSING.search(name)
        for inner in own
        for name in names_in(class_of(inner).forward, class_of(inner))
    ) or (module in own and not _only_scores(module, num_experts))


def _only_scores(module: nn.Module, num_experts: int) -> bool:
    """Whether a module of one's own returns one thing, and no scores that were cut off at 0."""
    if not returns_one_value(class_of(module).forward, class_of(module)):
        return False
    cut = "relu" in names_in(class_of(module).forward, class_of(module))
    return not (cut and returned_scores(module, num_experts).others)


def turns(module: nn.Module) -> bool:
    """Whether a module's code turns its scores around, as where experts choose tokens."""
    names = names_in(class_of(module).forward, class_of(module))
    return bool(names & {"t", "mt", "transpose", "permute", "swapaxes", "swapdims", "rearrange"})


def gate_reader(gate: nn.Module, width: int, top_k: int) -> str:
    """The reader that a user writes where a block takes the highest of its gate's logits.

    It is said with the advice to check it, as moetrace could not.
    """
    plain = isinstance(gate, nn.Linear)
    which = f"getattr(module, 'out_features', 0) == {width}"
    if not plain:
        which = f"type(module).__name__ == {class_of(gate).__name__!r}"
    return (
        "class GateReader:\n"
        f"    def matches(self, module): return {which}\n"
        "    def read(self, module, args, kwargs, output):"
        f" return moetrace.Routing(output.topk({top_k or 2}, dim=-1).indices, output)"
    )


CHOICE_READER = (
    "class ChoiceReader:\n"
    "    def matches(self, module): return type(module).__name__ == 'Choice'\n"
    "    def read(self, module, args, kwargs, output): return moetrace.Routing(output)"
)
"""The reader that a user writes for a module of theirs through which the chosen ids are passed."""

PASS_ON = (
    "to count it, pass the chosen ids through a module (class Choice(nn.Identity): ...; "
    "self.choice = Choice(); ids = self.choice(ids)) and give readers=[ChoiceReader()]"
)
"""What to do about a choice that no module gets or returns."""


def _listed(module: nn.Module) -> tuple[nn.Module, ...]:
    for candidate in (module, *module.children()):
        if isinstance(candidate, nn.ModuleList | nn.ModuleDict) and owned_experts(candidate):
            return tuple(candidate.children())
    return ()
