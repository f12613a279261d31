"""What a scan finds in one segment: its snapshots and where they stand, its events, its faults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moetrace.store.names import SegmentName

__all__ = ["Entry", "Segment"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A snapshot that was found whole, and where it stands.

    Attributes:
        segment: Its segment.
        run_id: The run that it says it belongs to.
        line: Number of its line in the log, from 0.
        offset: Bytes before the line.
        length: Bytes of the line.
        phase: Its phase.
        seq: Its position among the snapshots of its process.
        first_step: First step of its window.
        last_step: Last step of its window.
        wall_time: Unix time at which it closed, seconds.
        digest: Of its array rows and tables: equal for equal counts and sums per expert.
        layers: Names of its layers.
        experts: Experts per layer.
        tokens: Tokens routed per layer.
    """

    segment: SegmentName
    run_id: str
    line: int
    offset: int
    length: int
    phase: str
    seq: int
    first_step: int
    last_step: int
    wall_time: float
    digest: int
    layers: tuple[str, ...]
    experts: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """What a scan found in one segment.

    Attributes:
        name: Its name.
        header: Its first line, or None where that cannot be read. ``voids`` in it says how many
            lines count, by nonce, of segments that this one replaced after a failed write.
        entries: Its snapshots, in the order of the log.
        events: Its events: ``kind``, ``wall_time`` and ``fields``.
        event_lines: Number of the line of each event.
        ended: Whether the log was closed in order.
        faults: What could not be read, in words.
    """

    name: SegmentName
    header: Mapping[str, Any] | None
    entries: tuple[Entry, ...]
    events: tuple[Mapping[str, Any], ...]
    event_lines: tuple[int, ...]
    ended: bool
    faults: tuple[str, ...]
