"""Experts that no router is found for: named with what stands in the way, instead of left out."""

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from moetrace.readers.hand_written import PASS_ON
from moetrace.readers.structure import inner_experts, owned_experts
from moetrace.readers.wrapping import Core, user_name

__all__ = ["grouped_gate", "unread_experts"]


def unread_experts(
    found: Sequence[Core], claimed: Collection[str]
) -> Iterator[tuple[Core, int, str, bool]]:
    """Modules that hold experts, where nothing in the block around them is a candidate.

    Args:
        found: The modules of the model.
        claimed: Paths of the candidates.

    Yields:
        The module, its number of experts, why they are not counted, in words, and whether a reader
        of the user's could.
    """
    listed: list[str] = []
    for core in found:
        path = core.paths[0]
        blocks = [each.rpartition(".")[0] for each in core.paths]
        name = user_name(path).rpartition(".")[2].lower()
        count = owned_experts(core.module) or inner_experts(core.module)
        if not count or "expert" not in name or core.block is None:
            continue
        if any(_within(other, block) for other in claimed for block in blocks):
            continue
        if any(_within(path, other) for other in listed):
            continue
        listed.append(path)
        soft = _soft(core.block, count)
        yield core, count, soft or _unknown(core.block, count), not soft


def grouped_gate(module: nn.Module, name: str) -> int:
    """Groups of a gate that holds a matrix for each of them; 0 for all other modules."""
    own = list(module.parameters(recurse=False))
    named = {"gate", "gating", "router"} & set(name.lower().split("_"))
    alone = len(own) == 1 and own[0].dim() == 3 and not list(module.children())
    return int(own[0].shape[0]) if named and alone else 0


def _soft(block: nn.Module, count: int) -> str:
    slots = [p for p in block.parameters(recurse=False) if p.dim() == 3 and count in p.shape[:2]]
    if not slots:
        return ""
    return (
        f"holds {count} experts and slots for each: every token goes to all {count} experts with a "
        "weight, so that there are no counts; nothing can be done about it"
    )


def _unknown(block: nn.Module, count: int) -> str:
    own = [p for p in block.parameters(recurse=False) if p.dim() == 2 and count in p.shape]
    if own:
        who = f"its block scores them with a matrix of its own and chooses, in no module; {PASS_ON}"
        return f"holds {count} experts; {who}"
    return (
        f"holds {count} experts, but nothing beside them has a matrix of {count} rows: the caller "
        "or code of the block chooses; to count it, pass a reader for a module that gets or "
        "returns what was chosen"
    )


def _within(path: str, around: str) -> bool:
    return not around or path == around or path.startswith(f"{around}.")
