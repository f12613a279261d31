"""Reads segments and trusts nothing in them.

Recovery mode: tolerate a torn tail; skip and report corruption in the middle. A scan verifies every
line and every array row once and keeps only where they stand, so its memory does not grow with the
arrays; `read_snapshot` reads one of them, and verifies it again.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.snapshot import Snapshot
from moetrace.store import files
from moetrace.store.arrays import TENSORS
from moetrace.store.dense import read_dense
from moetrace.store.lines import MAX_LINE, DamagedRecord, open_line, read_lines, restored
from moetrace.store.names import CLAIM, LOG, SEGMENTS, UNFINISHED, SegmentName
from moetrace.store.records import Rows, parse_snapshot
from moetrace.store.schema import FORMAT, integer, mapping, real, run_id, text

__all__ = [
    "Entry",
    "Segment",
    "read_header",
    "read_snapshot",
    "scan_segment",
    "segment_names",
]

MAX_SEGMENTS = 1 << 20
MAX_FAULTS = 100
"""Faults of one segment that are told one by one; the rest are counted."""


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


def segment_names(root: str) -> tuple[list[SegmentName], list[str]]:
    """The segments of a run folder, and what stands among them that is none.

    Raises:
        OSError: There is no such folder, or no folder of segments in it.
    """
    run = files.open_folder(root)
    try:
        segments = files.open_folder(SEGMENTS, within=run)
    finally:
        files.close(run)
    try:
        found = [
            name
            for name in files.list_names(segments)
            if not CLAIM.fullmatch(name) and not UNFINISHED.fullmatch(name)
        ]
    finally:
        files.close(segments)
    names = [name for name in map(SegmentName.parse, found) if name]
    strange = len(found) - len(names)
    faults = (
        [f"{strange} names in {SEGMENTS} are no segment's and were not read"] if strange else []
    )
    if len(names) > MAX_SEGMENTS:
        faults.append(f"found {len(names)} segments; the first {MAX_SEGMENTS} were read")
    return names[:MAX_SEGMENTS], faults


def scan_segment(root: str, name: SegmentName) -> Segment:
    """Everything that one segment holds; raises nothing, whatever is in it."""
    scan = _Scan(root, name)
    try:
        log = files.open_within(root, (SEGMENTS, str(name), LOG))
        try:
            for offset, line in read_lines(log):
                scan.take(offset, line)
        finally:
            files.close(log)
    except OSError as error:
        scan.fault(f"{LOG} cannot be read: {error.strerror}")
    return scan.found()


def read_snapshot(root: str, entry: Entry, *, dense: bool = True) -> Snapshot:
    """The snapshot that a scan found.

    Args:
        root: Path of the run folder.
        entry: Where it stands.
        dense: Whether counts per expert of tables come with it, where they were kept.

    Raises:
        DamagedRecord: It is not there any more as it was.
    """
    try:
        log = files.open_within(root, (SEGMENTS, str(entry.segment), LOG))
        try:
            line = files.pread(log, entry.length, entry.offset)
        finally:
            files.close(log)
        record = parse_snapshot(open_line(line))
        vectors = [read_rows(root, entry.segment, rows) for rows, _ in record.groups]
        kept = record.dense if dense else ()
        counts = {rows.position: read_dense(root, entry.segment, rows) for rows in kept}
    except OSError as error:
        raise DamagedRecord(f"cannot be read any more: {error.strerror}") from error
    if (record.layers, tuple(record.columns["num_experts"])) != (entry.layers, entry.experts):
        raise DamagedRecord("not the record any more that was found there")
    return record.snapshot(
        vectors, counts, run_id=entry.run_id, rank=entry.segment.rank, attempt=entry.segment.attempt
    )


def read_header(root: str, name: SegmentName) -> dict[str, Any] | None:
    """The first line of a segment's log, or None where that is no header that can be read."""
    try:
        log = files.open_within(root, (SEGMENTS, str(name), LOG))
        try:
            _, line = next(read_lines(log))
        finally:
            files.close(log)
        return checked_header(open_line(line), name)
    except (OSError, DamagedRecord, StopIteration):
        return None


def checked_header(record: Mapping[str, Any], name: SegmentName) -> dict[str, Any]:
    """A header line with ``voids`` as a mapping from nonce to lines.

    Raises:
        DamagedRecord: It is none, or of another format or segment.
    """
    if record.get("record") != "header":
        raise DamagedRecord("not a header")
    if integer(record, "format") != FORMAT:
        raise DamagedRecord(f"written in format {record['format']}, this version reads {FORMAT}")
    run_id(record)
    if (record.get("attempt"), record.get("rank")) != (name.attempt, name.rank):
        raise DamagedRecord("the header of another segment")
    voids = record.get("voids")
    if not isinstance(voids, dict) or not all(type(lines) is int for lines in voids.values()):
        raise DamagedRecord("voids is not an object of integers")
    return {**restored(dict(record)), "voids": voids}


def read_rows(root: str, segment: SegmentName, rows: Rows) -> list[NDArray[np.int64]]:
    """One row of each tensor, each of shape ``(L, E)``.

    Raises:
        OSError: The file cannot be read.
        DamagedRecord: It is too short, a checksum does not fit, or a count is negative.
    """
    descriptor = files.open_within(root, (SEGMENTS, str(segment), rows.file))
    try:
        return [_row(descriptor, rows, tensor) for tensor in range(len(TENSORS))]
    finally:
        files.close(descriptor)


def _row(descriptor: int, rows: Rows, tensor: int) -> NDArray[np.int64]:
    offset, count = rows.data + rows.shape.offset(tensor, rows.row), rows.shape.row_bytes(tensor)
    # the size first: pread sets aside what it is asked for, whatever the file has
    if files.size(descriptor) < offset + count:
        raise DamagedRecord(f"{rows.file} ends before row {rows.row} of {TENSORS[tensor]}")
    data = files.pread(descriptor, count, offset)
    if zlib.crc32(data) != rows.crcs[tensor]:
        raise DamagedRecord(f"bad checksum of row {rows.row} of {TENSORS[tensor]} in {rows.file}")
    row = rows.shape.from_bytes(tensor, data)
    if tensor == 0 and row.min() < 0:
        raise DamagedRecord(f"negative counts in row {rows.row} of {rows.file}")
    return row


class _Scan:
    """Takes the lines of one log and collects what is whole."""

    def __init__(self, root: str, name: SegmentName) -> None:
        self._root, self._name = root, name
        self._header: dict[str, Any] | None = None
        self._entries: list[Entry] = []
        self._events: list[Mapping[str, Any]] = []
        self._event_lines: list[int] = []
        self._ended = False
        self._faults: list[str] = []
        self._untold = 0
        self._taken = 0  # lines so far, good or bad
        self._next = 0  # number that the next good one should bear
        self._damaged = False  # since the last good line
        self._foreign = False
        self._layers: dict[tuple[str, ...], tuple[str, ...]] = {}  # one copy of equal names
        self._array_headers: set[tuple[str, int, int]] = set()

    def take(self, offset: int, line: bytes) -> None:
        """Take the next line, whatever it is."""
        self._taken += 1
        if self._foreign:
            return
        if len(line) > MAX_LINE:
            self.fault(f"line {self._taken} is longer than {MAX_LINE} bytes; reading ends there")
            self._foreign = True
        elif not line.endswith(b"\n"):
            self.fault(f"torn tail: the last {len(line)} bytes are not a whole line (yet)")
        else:
            try:
                self._record(offset, line)
            except (DamagedRecord, OSError) as error:
                self._damaged = True
                self.fault(f"line {self._taken}: {_reason(error)}; skipped")

    def fault(self, words: str) -> None:
        """Note what could not be read."""
        if len(self._faults) < MAX_FAULTS:
            self._faults.append(f"segment {self._name}: {words}")
        else:
            self._untold += 1

    def found(self) -> Segment:
        """Everything that was whole."""
        more = [f"segment {self._name}: {self._untold} more faults"] if self._untold else []
        return Segment(
            name=self._name,
            header=self._header,
            entries=tuple(self._entries),
            events=tuple(self._events),
            event_lines=tuple(self._event_lines),
            ended=self._ended,
            faults=(*self._faults, *more),
        )

    def _record(self, offset: int, line: bytes) -> None:
        record = open_line(line)
        number = integer(record, "line")
        if number < self._next:
            raise DamagedRecord(f"repeats record {number}")
        if number > self._next and not self._damaged:
            self.fault(f"{number - self._next} lines before line {self._taken} are missing")
        self._next, self._damaged = number + 1, False
        match record.get("record"):
            case "header":
                self._take_header(record)
            case "snapshot":
                self._entries.append(self._entry(record, offset, len(line)))
            case "event":
                self._events.append(_event(record))
                self._event_lines.append(number)
            case "end":
                self._ended = True

    def _take_header(self, record: dict[str, Any]) -> None:
        try:
            self._header = checked_header(record, self._name)
        except DamagedRecord:
            self._foreign = True
            raise

    def _entry(self, record: Mapping[str, Any], offset: int, length: int) -> Entry:
        if (record.get("attempt"), record.get("rank")) != (self._name.attempt, self._name.rank):
            raise DamagedRecord("a snapshot of another segment")
        snapshot = parse_snapshot(record)
        for rows, _ in snapshot.groups:
            self._check_array_header(rows)
            read_rows(self._root, self._name, rows)
        for kept in snapshot.dense:
            read_dense(self._root, self._name, kept)
        return Entry(
            segment=self._name,
            run_id=run_id(record),
            offset=offset,
            length=length,
            line=integer(record, "line"),
            phase=snapshot.scalars["phase"],
            seq=snapshot.scalars["seq"],
            first_step=snapshot.scalars["first_step"],
            last_step=snapshot.scalars["last_step"],
            wall_time=snapshot.scalars["wall_time"],
            digest=hash(
                (
                    tuple(rows.crcs for rows, _ in snapshot.groups),
                    tuple((t.draws, t.row_draws, t.top_draws) for t in snapshot.scalars["indices"]),
                )
            ),
            layers=self._layers.setdefault(snapshot.layers, snapshot.layers),
            experts=tuple(snapshot.columns["num_experts"]),
            tokens=tuple(snapshot.columns["tokens"]),
        )

    def _check_array_header(self, rows: Rows) -> None:
        header = (rows.file, rows.data, rows.header_crc)
        if header in self._array_headers:
            return
        self._array_headers.add(header)
        descriptor = files.open_within(self._root, (SEGMENTS, str(self._name), rows.file))
        try:
            data = files.pread(descriptor, rows.data, 0)
        finally:
            files.close(descriptor)
        if zlib.crc32(data) != rows.header_crc:
            self.fault(f"the header of {rows.file} is damaged; its rows are read without it")


def _event(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": text(record, "kind"),
        "wall_time": real(record, "wall_time"),
        "fields": mapping(record, "fields"),
    }


def _reason(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) else str(error)
