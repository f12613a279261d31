"""What stands in the file of an offline run of W&B, read without W&B's own reader: it has none."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
_HEADER = 7


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the only run below ``folder``, without the keys that W&B adds."""
    found = []
    for record in _records(folder):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, name = item.nested_key or [item.key]
                inner = row
                for key in outer:
                    inner = inner.setdefault(key, {})
                inner[name] = json.loads(item.value_json)
            found.append({key: value for key, value in row.items() if not key.startswith("_")})
    return found


def axes(folder: Path) -> dict[str, str]:
    """The axis of each metric that was defined, by its name or glob."""
    return {
        record.metric.name or record.metric.glob_name: record.metric.step_metric
        for record in _records(folder)
        if record.WhichOneof("record_type") == "metric"
    }


def alerts(folder: Path) -> list[tuple[str, str]]:
    """Title and text of each alert that was sent."""
    return [
        (record.alert.title, record.alert.text)
        for record in _records(folder)
        if record.WhichOneof("record_type") == "alert"
    ]


def _records(folder: Path) -> list[Any]:
    """The records of a finished run; W&B's service writes the last of them after ``finish``."""
    (path,) = folder.rglob("run-*.wandb")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = list(_parsed(path.read_bytes()))
        if any(record.WhichOneof("record_type") in ("exit", "footer") for record in records):
            return records
        time.sleep(0.05)
    raise AssertionError(f"W&B has not written the end of {path}")


def _parsed(data: bytes) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    at, parts = _HEADER, b""
    while data[:4] == b":W&B" and at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # a block's end too short for a header is padding
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + _HEADER + length > len(data):
            return
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
