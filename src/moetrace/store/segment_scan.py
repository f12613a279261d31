"""Goes through a segment from its first line to its last, and trusts nothing in it.

Recovery mode: tolerate a torn tail; skip and report corruption in the middle. A scan verifies every
line and every array row once and keeps only where they stand, so its memory does not grow with the
arrays.
"""

import zlib
from collections.abc import Mapping
from typing import Any

from moetrace.store import files
from moetrace.store.dense import read_dense
from moetrace.store.lines import MAX_LINE, DamagedRecord, open_line, read_lines
from moetrace.store.names import LOG, SEGMENTS, SegmentName
from moetrace.store.records import Rows, parse_snapshot
from moetrace.store.schema import integer, mapping, real, run_id, text
from moetrace.store.segment import Entry, Segment
from moetrace.store.segment_reader import checked_header, read_rows

__all__ = ["scan_segment"]

MAX_FAULTS = 100
"""Faults of one segment that are told one by one; the rest are counted."""


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
