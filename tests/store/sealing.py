"""Checksums that fit for cases that were changed, as an attacker would make them."""

import json
import zlib
from typing import Any

from tests.store.cases import Case

TAIL = len(b',"crc32":"00000000"}\n')
"""Bytes of a line that its checksum takes, the newline included."""


def sealed(case: Case) -> Case:
    """The case with checksums that fit, of lines and of the rows that they name."""
    case = dict(case)
    for name in logs_of(case):
        folder = name.removesuffix("log.jsonl")
        lines = case[name].splitlines(keepends=True)
        case[name] = b"".join(_sealed(line, case, folder) for line in lines)
    return case


def record_of(line: bytes) -> dict[str, Any] | None:
    """What stands in a line, whatever its checksum; None where that is no object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    record.pop("crc32", None)
    return record or None


def line_of(record: dict[str, Any]) -> bytes:
    """A record as a line; unlike the writer's, of whatever length and numbers."""
    return with_sum(json.dumps(record, separators=(",", ":")).encode()[:-1])


def with_sum(body: bytes) -> bytes:
    """The line of these bytes."""
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def logs_of(case: Case) -> list[str]:
    """Paths of the logs in a case."""
    return [name for name in sorted(case) if name.endswith("/log.jsonl")]


def _sealed(line: bytes, case: Case, folder: str) -> bytes:
    if not line.endswith(b"}\n") or len(line) < TAIL:
        return line  # torn, or no line at all
    body = line[:-TAIL]
    try:
        record = json.loads(body + b"}")
        if _with_sums_of_rows(record, case, folder):
            return line_of(record)
    except (ValueError, RecursionError):
        pass  # it stays as it is, under a checksum that fits
    return with_sum(body)


def _with_sums_of_rows(record: Any, case: Case, folder: str) -> bool:
    """Put the right checksums of array rows into a record; whether one was another."""
    changed = False
    for group in _objects(record, "arrays"):
        try:
            data, start, rows = case[folder + group["file"]], group["data"], group["shape"][0]
            entries = group["shape"][1] * group["shape"][2]
            sums = []
            for kind in group["dtypes"]:
                size = entries * (4 if kind == "I32" else 8)
                sums.append(_sum(data, start + group["row"] * size, size))
                start += rows * size
            changed |= _put(group, "header_crc32", _sum(data, 0, group["data"]))
            changed |= _put(group, "crc32", sums)
        except (KeyError, TypeError, IndexError):
            continue
    for table in _objects(record, "dense"):
        try:
            data, start = case[folder + table["file"]], table["data"]
            width = 4 if table["dtype"] == "I32" else 8
            sums = []
            for size in (table["experts"] * width, table["experts"] * 8)[: len(table["crc32"])]:
                sums.append(_sum(data, start, size))
                start += size
            changed |= _put(table, "crc32", sums)
        except (KeyError, TypeError, IndexError):
            continue
    return changed


def _objects(record: Any, name: str) -> list[dict[str, Any]]:
    found = record.get(name) if isinstance(record, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _sum(data: bytes, start: int, size: int) -> int:
    return zlib.crc32(data[max(0, start) : max(0, start + size)])


def _put(item: dict[str, Any], name: str, value: Any) -> bool:
    other = item.get(name) != value
    item[name] = value
    return other
