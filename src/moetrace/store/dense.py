"""Counts per expert of the tables of one window: a safetensors file of their own, now and then.

A window whose tables are to be kept has one file with ``{position}.tokens_per_expert`` (I32, or I64
from the first count above 2147483647) and, where scores were seen, ``{position}.score_sum`` (I64)
of each table. It is written whole before the line that names it. Nothing here reads a header back.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from moetrace.index_stats import IndexStats
from moetrace.store import files
from moetrace.store.arrays import MAX_ENTRIES
from moetrace.store.lines import DamagedRecord
from moetrace.store.names import DENSE_FILE, SEGMENTS, SegmentName, dense_file
from moetrace.store.schema import column, integer, text

__all__ = ["DenseRows", "DenseWriter", "dense_rows", "read_dense", "with_dense"]

_I32_MAX = 2**31 - 1
_NUMBERS = {"I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True, slots=True)
class DenseRows:
    """Where the counts of one table stand.

    Attributes:
        file: Name of the file, within the segment.
        position: Which of the window's tables.
        experts: E.
        counts: Type of the counts, ``"I32"`` or ``"I64"``.
        data: Bytes before the counts; sums of scores stand right behind them.
        crcs: Checksum of the counts, and of the sums of scores where there are some.
    """

    file: str
    position: int
    experts: int
    counts: str
    data: int
    crcs: tuple[int, ...]

    def to_record(self) -> dict[str, Any]:
        """The rows as they stand in the line."""
        return {
            "file": self.file,
            "position": self.position,
            "experts": self.experts,
            "dtype": self.counts,
            "data": self.data,
            "crc32": list(self.crcs),
        }


class DenseWriter:
    """The files of one segment with counts per expert.

    Args:
        folder: Path of the segment, until it is renamed.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._made = 0
        self._unsynced: list[int] = []

    def put(self, tables: Sequence[IndexStats]) -> list[DenseRows]:
        """Write the counts of the tables that are due and hold them, at most 2^25 experts in all.

        Raises:
            OSError: The system did not take all of it.
        """
        kept: list[tuple[int, list[bytes], str, int]] = []
        room = MAX_ENTRIES
        for position, table in enumerate(tables):
            counts = table.tokens_per_expert
            if not table.due or counts is None or counts.size > room:
                continue
            room -= counts.size
            kind = "I32" if int(counts.max()) <= _I32_MAX else "I64"
            parts = [counts.astype(_NUMBERS[kind]).tobytes()]
            if table.score_sum is not None:
                parts.append(table.score_sum.astype("<i8").tobytes())
            kept.append((position, parts, kind, counts.size))
        return self._written(kept) if kept else []

    def sync(self) -> None:
        """Bring the files to the device.

        Raises:
            OSError: That failed.
        """
        while self._unsynced:
            files.sync(self._unsynced[-1])
            files.close(self._unsynced.pop())

    def close(self) -> None:
        """Close all files, synced or not, whatever happens to one of them.

        Raises:
            OSError: The last of the errors.
        """
        error: OSError | None = None
        while self._unsynced:
            try:
                files.close(self._unsynced.pop())
            except OSError as trouble:
                error = trouble
        if error is not None:
            raise error

    def _written(self, kept: Sequence[tuple[int, list[bytes], str, int]]) -> list[DenseRows]:
        header = _header(kept)
        name, start = dense_file(self._made), len(header)
        self._made += 1
        rows: list[DenseRows] = []
        descriptor = files.open_sized(os.path.join(self.folder, name))
        self._unsynced.append(descriptor)
        files.pwrite_all(descriptor, header, 0)
        for position, parts, kind, experts in kept:
            crcs = tuple(zlib.crc32(part) for part in parts)
            rows.append(DenseRows(name, position, experts, kind, start, crcs))
            for part in parts:
                files.pwrite_all(descriptor, part, start)
                start += len(part)
        return rows


def _header(kept: Sequence[tuple[int, list[bytes], str, int]]) -> bytes:
    description: dict[str, Any] = {"__metadata__": {"format": "moetrace", "rows": "log.jsonl"}}
    start = 0
    for position, parts, kind, experts in kept:
        for name, part in zip(("tokens_per_expert", "score_sum"), parts, strict=False):
            description[f"{position}.{name}"] = {
                "dtype": kind if name == "tokens_per_expert" else "I64",
                "shape": [experts],
                "data_offsets": [start, start + len(part)],
            }
            start += len(part)
    packed = orjson.dumps(description)
    packed += b" " * (-len(packed) % 8)
    return len(packed).to_bytes(8, "little") + packed


def dense_rows(record: Mapping[str, Any], tables: Sequence[IndexStats]) -> tuple[DenseRows, ...]:
    """Where a snapshot's record says that counts per expert stand.

    Raises:
        DamagedRecord: It says something that no writer does.
    """
    if "dense" not in record:
        return ()
    found = tuple(_rows(item, tables) for item in column(record, "dense"))
    if len({rows.position for rows in found}) < len(found):
        raise DamagedRecord("counts of one table twice")
    if sum(rows.experts for rows in found) > MAX_ENTRIES:
        raise DamagedRecord(f"counts of more than {MAX_ENTRIES} experts")
    return found


def _rows(item: Any, tables: Sequence[IndexStats]) -> DenseRows:
    if not isinstance(item, dict):
        raise DamagedRecord("dense is not a list of objects")
    file = text(item, "file")
    if not DENSE_FILE.fullmatch(file):
        raise DamagedRecord("dense names a file that is none of a segment's")
    position = integer(item, "position", below=len(tables))
    experts = integer(item, "experts", below=MAX_ENTRIES + 1)
    if experts != tables[position].num_experts:
        raise DamagedRecord("counts of another size than their table")
    kind = text(item, "dtype")
    if kind not in _NUMBERS:
        raise DamagedRecord("unknown number type of counts")
    crcs = column(item, "crc32")
    if not 1 <= len(crcs) <= 2 or not all(type(crc) is int for crc in crcs):
        raise DamagedRecord("checksums of counts that are none")
    return DenseRows(file, position, experts, kind, integer(item, "data"), tuple(crcs))


def read_dense(root: str, segment: SegmentName, rows: DenseRows) -> list[NDArray[np.int64]]:
    """Counts per expert, and sums of scores where there are some, each of shape ``(E,)``.

    Raises:
        OSError: The file cannot be read.
        DamagedRecord: It is too short, a checksum does not fit, or a count is negative.
    """
    descriptor = files.open_within(root, (SEGMENTS, str(segment), rows.file))
    try:
        vectors: list[NDArray[np.int64]] = []
        start = rows.data
        for crc, kind in zip(rows.crcs, (rows.counts, "I64"), strict=False):
            count = rows.experts * np.dtype(_NUMBERS[kind]).itemsize
            # the size first: pread sets aside what it is asked for, whatever the file has
            if files.size(descriptor) < start + count:
                raise DamagedRecord(f"{rows.file} ends before table {rows.position}")
            data = files.pread(descriptor, count, start)
            if zlib.crc32(data) != crc:
                raise DamagedRecord(f"bad checksum of table {rows.position} in {rows.file}")
            vectors.append(np.frombuffer(data, _NUMBERS[kind]).astype(np.int64))
            start += count
    finally:
        files.close(descriptor)
    if min(int(vector.min()) for vector in vectors) < 0:
        raise DamagedRecord(f"negative counts of table {rows.position} in {rows.file}")
    return vectors


def with_dense(
    tables: Sequence[IndexStats], found: Mapping[int, Sequence[NDArray[np.int64]]]
) -> tuple[IndexStats, ...]:
    """The records of a window with the counts that were read for some of them, by position."""
    return tuple(
        table
        if position not in found
        else replace(
            table,
            tokens_per_expert=found[position][0],
            score_sum=found[position][1] if len(found[position]) > 1 else None,
        )
        for position, table in enumerate(tables)
    )
