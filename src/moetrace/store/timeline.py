"""Which windows of a run count, and which of several ranks belong together.

A resumed run writes some steps again, its next life may have another number of ranks, and ranks
may close their windows at different steps; all of it is settled here, on entries alone, before any
array is read.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moetrace.store.segment import Entry

__all__ = ["Life", "aligned", "lives", "without_superseded"]

Owner = tuple[int, int]
"""Attempt and rank of a segment, as in its name."""


@dataclass(frozen=True, slots=True)
class Life:
    """What one segment says about the processes that lived together with its own.

    Attributes:
        number: Which life of the run, from 0.
        world_size: Number of ranks, 0 where it is unknown.
        launch: What the launcher called it, ``""`` where that is unknown.
    """

    number: int
    world_size: int = 0
    launch: str = ""


def lives(worlds: Mapping[Owner, tuple[int, str]]) -> dict[Owner, Life]:
    """Which segments were written side by side, by attempt and rank.

    A rank numbers its own attempts, and a rank that was not there before starts at 0. Side by side
    are the ranks' first segments of one world size and one launch, their second ones, and so on.
    The number of a life is the largest attempt in it.

    Args:
        worlds: World size and launch by attempt and rank; 0 and ``""`` where they are unknown.

    >>> two, three = (2, ""), (3, "")
    >>> elastic = {(0, 0): two, (0, 1): two, (1, 0): three, (1, 1): three, (0, 2): three}
    >>> lives(elastic)[0, 2].number
    1
    """
    seen: Counter[tuple[int, int, str]] = Counter()
    together: dict[tuple[int, str, int], list[Owner]] = {}
    for attempt, rank in sorted(worlds):
        size, launch = worlds[attempt, rank]
        turn = seen[rank, size, launch]
        seen[rank, size, launch] += 1
        together.setdefault((size, launch, turn), []).append((attempt, rank))
    return {
        owner: Life(max(attempt for attempt, _ in owners), size, launch)
        for (size, launch, _), owners in together.items()
        for owner in owners
    }


def without_superseded(entries: Iterable[Entry], *, lives: Mapping[Owner, Life]) -> list[Entry]:
    """The entries that no later life of the run has written again.

    A later life supersedes what reaches past its first train step: of its own rank, of the ranks
    that its world has no place for, and of all ranks where it is certainly another launch. A life
    that never trained supersedes only earlier windows of the phases that it has.

    Args:
        entries: Snapshots of all attempts and ranks.
        lives: The life of each segment, by attempt and rank.
    """
    entries = list(entries)
    starts: dict[Owner, dict[str, int]] = {}
    for entry in entries:
        phases = starts.setdefault((entry.segment.attempt, entry.segment.rank), {})
        phases[entry.phase] = min(entry.first_step, phases.get(entry.phase, entry.first_step))
    rewritten = _rewritten(starts, lives)
    limits = {
        (owner, phase): _limit(owner, phase, lives[owner], rewritten)
        for owner, phases in starts.items()
        for phase in phases
    }
    return [
        entry
        for entry in entries
        if entry.last_step < limits[(entry.segment.attempt, entry.segment.rank), entry.phase]
    ]


_ALL = -1
"""Stands for all ranks of a life together."""

Starts = dict[int, dict[Life, dict[str, int]]]
"""First step per phase, by rank and life."""


def _rewritten(starts: Mapping[Owner, Mapping[str, int]], lives: Mapping[Owner, Life]) -> Starts:
    found: Starts = {}
    for owner, phases in starts.items():
        for rank in (owner[1], _ALL):
            known = found.setdefault(rank, {}).setdefault(lives[owner], {})
            for phase, first in phases.items():
                known[phase] = min(first, known.get(phase, first))
    return found


def _limit(owner: Owner, phase: str, life: Life, rewritten: Starts) -> float:
    """First step that a later life has written again."""
    limit = math.inf
    for rank in (owner[1], _ALL):
        for later, phases in rewritten.get(rank, {}).items():
            if later.number > life.number and (rank != _ALL or _replaces(later, life, owner[1])):
                limit = min(limit, phases.get("train", phases.get(phase, math.inf)))
    return limit


def _replaces(later: Life, life: Life, rank: int) -> bool:
    """Whether all that a life wrote of this rank was written again, if not by this rank."""
    homeless = 0 < later.world_size <= rank
    resized = 0 < later.world_size != life.world_size > 0
    relaunched = bool(later.launch and life.launch) and later.launch != life.launch
    return homeless or resized or relaunched


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
