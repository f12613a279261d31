"""Torn tails at every byte, every flipped bit: what is lost, what is told; nothing lies."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moetrace.store.names import SegmentName
from moetrace.store.segment_reader import read_snapshot
from moetrace.store.segment_scan import scan_segment
from tests.store.windows import arrays_of, log_of, window, writer

Found = tuple[list[dict[str, Any]], list[str], bool]


def found_in(log: Path) -> tuple[Found, tuple[str, ...]]:
    """Snapshots, events and the end of a segment as they are read back, and the faults."""
    root, name = str(log.parents[2]), SegmentName.parse(log.parent.name)
    assert name is not None
    segment = scan_segment(root, name)
    snapshots = [read_snapshot(root, entry).to_dict() for entry in segment.entries]
    events = [f"{event['kind']} {event['fields']}" for event in segment.events]
    return (snapshots, events, segment.ended), segment.faults


def flips(file: Path, end: int) -> Iterator[int]:
    """Flip each bit of the first bytes of a file in turn; leaves the file as it was."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        for offset, byte in enumerate(file.read_bytes()[:end]):
            for bit in range(8):
                os.pwrite(descriptor, bytes([byte ^ 1 << bit]), offset)
                yield offset
            os.pwrite(descriptor, bytes([byte]), offset)
    finally:
        os.close(descriptor)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of a segment: header, snapshot, event, snapshot, end."""
    segment = writer(tmp_path)
    segment.append(window(0))
    segment.event("alert", {"layer": "a"})
    segment.append(window(1))
    segment.close()
    return log_of(tmp_path)


class TestTornTail:
    def test_every_cut_keeps_exactly_the_whole_lines(self, log: Path) -> None:
        """C9: a log cut at any byte gives the records before the cut, and names the bytes after."""
        text = log.read_bytes()
        (snapshots, events, _), _ = found_in(log)
        for cut in range(len(text) - 1, -1, -1):
            os.truncate(log, cut)
            kept, rest = text[:cut].count(b"\n"), cut - (text[:cut].rfind(b"\n") + 1)
            before = [snapshots[:0], snapshots[:1], snapshots[:1], snapshots][max(kept - 1, 0)]
            found, faults = found_in(log)
            assert found == (before, events if kept >= 3 else [], False)
            torn = f"segment {log.parent.name}: torn tail: the last {rest} bytes are not a whole"
            assert [fault.startswith(torn) for fault in faults] == ([True] if rest else [])

    def test_a_whole_record_without_its_newline_does_not_count(self, log: Path) -> None:
        """C10: a last line that would parse is torn all the same while its newline is missing."""
        os.truncate(log, log.stat().st_size - 1)
        (_, _, ended), faults = found_in(log)
        assert not ended
        assert "torn tail" in faults[0]


class TestFlippedBit:
    def test_none_in_the_log_is_read_as_something_else(self, log: Path) -> None:
        """C12: each flipped bit of the log is told; at most two records are lost, none altered."""
        (snapshots, events, _), _ = found_in(log)
        for offset in flips(log, log.stat().st_size):
            (left, told, ended), faults = found_in(log)
            assert faults, f"a flip at byte {offset} went unseen"
            assert all(snapshot in snapshots for snapshot in left)
            assert all(event in events for event in told)
            lost = len(snapshots) - len(left) + len(events) - len(told) + (not ended)
            assert lost <= 2, f"a flip at byte {offset} cost {lost} records"
        assert found_in(log) == ((snapshots, events, True), ())

    def test_none_in_the_array_file_is_read_as_something_else(self, log: Path) -> None:
        """C12, I3: each flipped bit of a committed row or a header is told; it costs a snapshot."""
        (snapshots, _, _), _ = found_in(log)
        arrays = arrays_of(log.parents[2])
        header = 8 + int.from_bytes(arrays.read_bytes()[:8], "little")
        rows = 1024
        committed = {
            header + start + byte
            for start, length in ((0, 16), (rows * 8, 32), (rows * 24, 32))  # I32, I64, I64
            for byte in range(length)
        }
        seen = set()
        for offset in flips(arrays, header + rows * 24 + 32):
            if offset >= header and offset not in committed:
                continue
            seen.add(offset)
            (left, _, ended), faults = found_in(log)
            assert faults, f"a flip at byte {offset} went unseen"
            assert ended
            assert all(snapshot in snapshots for snapshot in left)
            assert len(left) == (2 if offset < header else 1)
        assert seen == committed | set(range(header))
        assert found_in(log)[1] == ()
