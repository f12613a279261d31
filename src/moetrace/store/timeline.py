"""Which windows of a run count, and which of several ranks belong together.

A resumed run writes some steps again, and ranks may close their windows at different steps; both
are settled here, on entries alone, before any array is read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from moetrace.store.segment_reader import Entry

__all__ = ["aligned", "without_superseded"]


def without_superseded(
    entries: Iterable[Entry], *, world_sizes: Mapping[tuple[int, int], int]
) -> list[Entry]:
    """The entries that no later attempt has written again.

    A later attempt supersedes what reaches past its first train step: of its own rank, and of the
    ranks that its world has no place for. An attempt that never trained supersedes only earlier
    windows of the phases that it has.

    Args:
        entries: Snapshots of all attempts and ranks.
        world_sizes: Number of ranks of an attempt, by ``(attempt, rank)``, where it is known.
    """
    entries = list(entries)
    starts: dict[tuple[int, int], dict[str, int]] = {}
    for entry in entries:
        phases = starts.setdefault((entry.segment.attempt, entry.segment.rank), {})
        phases[entry.phase] = min(entry.first_step, phases.get(entry.phase, entry.first_step))

    limits = {
        (*owner, phase): _rewritten_from(starts, world_sizes, *owner, phase)
        for owner, phases in starts.items()
        for phase in phases
    }
    return [
        entry
        for entry in entries
        if entry.last_step < limits[entry.segment.attempt, entry.segment.rank, entry.phase]
    ]


def _rewritten_from(
    starts: Mapping[tuple[int, int], Mapping[str, int]],
    world_sizes: Mapping[tuple[int, int], int],
    attempt: int,
    rank: int,
    phase: str,
) -> float:
    """First step that a later attempt has written again."""
    rewritten = math.inf
    for (later, by), phases in starts.items():
        in_its_place = by == rank or rank >= world_sizes.get((later, by), rank + 1)
        if later > attempt and in_its_place:
            rewritten = min(rewritten, phases.get("train", phases.get(phase, math.inf)))
    return rewritten


def aligned(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Entries of one phase in groups that cover the same steps, in the order of the steps.

    Where all ranks closed the same windows, a group holds one entry of each. Where they did not,
    it holds everything within the smallest span that no window crosses. Entries of a single rank
    stay apart.
    """
    ordered = sorted(entries, key=lambda entry: (entry.first_step, entry.last_step, entry.seq))
    if len({entry.segment.rank for entry in ordered}) < 2:
        return [[entry] for entry in ordered]
    groups: list[list[Entry]] = []
    reached = -1
    for entry in ordered:
        if not groups or entry.first_step > reached:
            groups.append([])
        groups[-1].append(entry)
        reached = max(reached, entry.last_step)
    return [part for group in groups for part in _parted(group)]


def _parted(group: Sequence[Entry]) -> list[list[Entry]]:
    """The group in several, where every rank has the same windows in it."""
    by_rank: dict[int, list[Entry]] = {}
    for entry in group:
        by_rank.setdefault(entry.segment.rank, []).append(entry)
    spans = {
        tuple((entry.first_step, entry.last_step) for entry in own) for own in by_rank.values()
    }
    if len(spans) > 1:
        return [list(group)]
    return [list(part) for part in zip(*by_rank.values(), strict=True)]
