"""Reads one thing out of a segment, a header, a row or a snapshot, and trusts nothing in it.

What a scan has verified `read_snapshot` verifies again.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.snapshot import Snapshot
from moetrace.store import files
from moetrace.store.arrays import TENSORS
from moetrace.store.dense import read_dense
from moetrace.store.lines import DamagedRecord, open_line, read_lines, restored
from moetrace.store.names import CLAIM, LOG, SEGMENTS, UNFINISHED, SegmentName
from moetrace.store.records import Rows, parse_snapshot
from moetrace.store.schema import FORMAT, integer, run_id
from moetrace.store.segment import Entry

__all__ = ["checked_header", "read_header", "read_rows", "read_snapshot", "segment_names"]

MAX_SEGMENTS = 1 << 20


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
