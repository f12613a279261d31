"""What the ranks of a run are to each other: copies, absent, behind, or two where one belongs.

Ranks are added up only where they routed different tokens, and a sum over some of them says so.
Everything here works on entries and headers, before any array is read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moetrace.store.segment import Entry, Segment
from moetrace.store.timeline import Life, Owner, lives
from moetrace.topology import Topology

__all__ = ["Ranks", "two_writers"]

_MOST_TOLD = 8
_CLOCK_SLACK = 2.0
"""Seconds that a later process of a rank may overlap an earlier one: one ends while one begins."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of all lives of a run.

    Attributes:
        lives: The life of each segment, by attempt and rank.
        copies: What each segment has in common with its copies, where its topology declares any.
        idle: Segments of processes without any router: they have nothing to count.
        ended: Segments of processes that closed in order.
    """

    lives: Mapping[Owner, Life]
    copies: Mapping[Owner, tuple[Any, ...]]
    idle: frozenset[Owner]
    ended: frozenset[Owner]

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Ranks":
        """What the headers of the segments of one run say."""
        headers = {owner_of(segment): segment.header or {} for segment in segments}
        headers |= {owner_of(item): item.header for item in segments if item.header is not None}
        found = lives({owner: (_size(head), _launch(head)) for owner, head in headers.items()})
        copies: dict[Owner, tuple[Any, ...]] = {}
        for owner, header in headers.items():
            topology = Topology.from_record(header.get("topology"))
            if topology is not None and topology.replicated:
                copies[owner] = (found[owner].number, topology.replicated, topology.copies_of())
        counted = {_owner(entry) for segment in segments for entry in segment.entries}
        idle = {
            owner
            for owner, header in headers.items()
            if header.get("sites") == [] and not header.get("tables")
        } - counted
        ended = {owner_of(segment) for segment in segments if segment.ended}
        return cls(found, copies, frozenset(idle), frozenset(ended))

    def distinct(self, group: Sequence[Entry]) -> list[Entry]:
        """One of every set of copies: the one with the most steps, of those the lowest rank."""
        if not self.copies:
            return list(group)
        steps: dict[tuple[Any, ...], dict[Owner, int]] = {}
        for entry in group:
            owner = _owner(entry)
            if owner in self.copies:
                spans = steps.setdefault(self.copies[owner], {})
                spans[owner] = spans.get(owner, 0) + entry.last_step - entry.first_step + 1
        taken = {
            key: min(spans, key=lambda owner: (-spans[owner], owner[1]))
            for key, spans in steps.items()
        }
        return [
            entry
            for entry in group
            if taken.get(self.copies.get(_owner(entry), ()), _owner(entry)) == _owner(entry)
        ]

    def covered(self, group: Iterable[Entry]) -> tuple[int, int]:
        """How many ranks these entries speak for, of how many; 0 of 0 where that is unknown.

        A rank speaks for its copies, and one without routers has nothing to say.
        """
        there = {_owner(entry) for entry in group}
        newest = max((self.lives[owner].number for owner in there), default=-1)
        size = max((life.world_size for life in self._of(newest)), default=0)
        said = {self.copies[owner] for owner in there if owner in self.copies}
        ranks = {
            rank
            for (attempt, rank), life in self.lives.items()
            if life.number == newest
            and (
                (attempt, rank) in there
                or (attempt, rank) in self.idle
                or self.copies.get((attempt, rank)) in said
            )
        }
        return (len(ranks), size) if size else (0, 0)

    def coverage(self, groups: Sequence[Sequence[Entry]]) -> dict[str, Any]:
        """How much of the newest life is there.

        ``ranks`` and ``world_size`` count processes, ``missing`` are ranks that left no segment,
        ``stopped`` the last step of each that is behind the others by more than a window.

        Args:
            groups: Its windows of the phase ``train``, by the steps they cover.
        """
        newest = max((life.number for life in self.lives.values()), default=0)
        ranks = {rank for (_, rank), life in self.lives.items() if life.number == newest}
        size = max((life.world_size for life in self._of(newest)), default=0) or len(ranks)
        return {
            "ranks": len(ranks),
            "world_size": size,
            "missing": sorted(set(range(size)) - ranks) if size <= 1 << 20 else [],
            "stopped": self._stopped(groups, newest),
        }

    def faults(self, groups: Sequence[Sequence[Entry]]) -> list[str]:
        """What keeps a sum over ranks from being the whole truth, in words.

        Args:
            groups: As in `coverage`, copies included.
        """
        found = self.coverage(groups)
        told: list[str] = []
        if absent := found["world_size"] - sum(r < found["world_size"] for r in self._newest()):
            told.append(f"{absent} of {found['world_size']} ranks have left no segment")
        reached = max((entry.last_step for group in groups for entry in group), default=0)
        told += _few(
            [
                f"rank {rank} stops at step {step}, the others went on to step {reached}"
                for rank, step in found["stopped"].items()
            ]
        )
        return told + _few(self._disagreements(groups)) + _few(self._twins(groups))

    def _of(self, number: int) -> list[Life]:
        return [life for life in self.lives.values() if life.number == number]

    def _newest(self) -> set[int]:
        newest = max((life.number for life in self.lives.values()), default=0)
        return {rank for (_, rank), life in self.lives.items() if life.number == newest}

    def _stopped(self, groups: Sequence[Sequence[Entry]], newest: int) -> dict[int, int]:
        last: dict[Owner, int] = {}
        for group in groups:
            for entry in group:
                if self.lives[_owner(entry)].number == newest:
                    last[_owner(entry)] = max(entry.last_step, last.get(_owner(entry), 0))
        if not last:
            return {}
        ends = sorted({e.last_step for g in groups for e in g if _owner(e) in last})
        over = any(owner in self.ended for owner in last)
        # A rank of a live run may be a window behind: its writer is about to write it.
        limit = ends[-1] if over or len(ends) < 2 else ends[-2]
        return {
            owner[1]: step
            for owner, step in sorted(last.items(), key=lambda item: item[0][1])
            if step < limit and owner not in self.ended
        }

    def _disagreements(self, groups: Sequence[Sequence[Entry]]) -> list[str]:
        told: dict[str, None] = {}
        for group in groups:
            sums: dict[tuple[Any, ...], Entry] = {}
            for entry in group:
                key = self.copies.get(_owner(entry))
                if key is None:
                    continue
                first = sums.setdefault((key, entry.first_step, entry.last_step), entry)
                if first.layers == entry.layers and first.digest != entry.digest:
                    told[
                        f"ranks {first.segment.rank} and {entry.segment.rank} are declared to "
                        "route the same tokens and did not count the same; the lowest counts"
                    ] = None
        return list(told)

    def _twins(self, groups: Sequence[Sequence[Entry]]) -> list[str]:
        """Ranks that counted exactly the same in every window, though nothing says why."""
        seen: dict[int, list[tuple[int, int, int]]] = {}
        for group in groups:
            for entry in group:
                if _owner(entry) not in self.copies and any(entry.tokens):
                    window = (entry.first_step, entry.last_step, entry.digest)
                    seen.setdefault(entry.segment.rank, []).append(window)
        alike: dict[tuple[tuple[int, int, int], ...], list[int]] = {}
        for rank, windows in seen.items():
            alike.setdefault(tuple(sorted(windows)), []).append(rank)
        return [
            f"ranks {', '.join(map(str, ranks[:_MOST_TOLD]))} counted exactly the same in all "
            f"{len(windows)} windows and were added up; if they route the same tokens, say so: "
            "attach(..., topology=Topology({...}, replicated=(...)))"
            for windows, ranks in alike.items()
            if len(ranks) > 1
        ]


def two_writers(segments: Sequence[Segment]) -> list[str]:
    """That two processes wrote at the same time as one rank, in words."""
    began: dict[Owner, float] = {}
    wrote: dict[Owner, float] = {}
    for segment in segments:
        owner = owner_of(segment)
        created = (segment.header or {}).get("created")
        if isinstance(created, int | float):
            began[owner] = min(float(created), began.get(owner, math.inf))
        times = [entry.wall_time for entry in segment.entries]
        wrote[owner] = max([*times, wrote.get(owner, 0.0)])
    return _few(
        [
            f"two processes wrote at once as rank {rank} (attempts {attempt} and {attempt + 1}), "
            "or their clocks differ; the later one counts. Give each job a folder of its own, and "
            "each process its RANK"
            for attempt, rank in sorted(wrote)
            if wrote[attempt, rank] > began.get((attempt + 1, rank), math.inf) + _CLOCK_SLACK
        ]
    )


def owner_of(segment: Segment) -> Owner:
    """Attempt and rank of a segment."""
    return segment.name.attempt, segment.name.rank


def _owner(entry: Entry) -> Owner:
    return entry.segment.attempt, entry.segment.rank


def _few(told: list[str]) -> list[str]:
    more = len(told) - _MOST_TOLD
    return told if more <= 0 else [*told[:_MOST_TOLD], f"{more} more like the last one"]


def _size(header: Mapping[str, Any]) -> int:
    size = header.get("world_size")
    return size if type(size) is int and size > 0 else 0


def _launch(header: Mapping[str, Any]) -> str:
    word = header.get("launch")
    return word if isinstance(word, str) and len(word) <= 64 else ""
