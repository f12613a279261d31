r"""One line of a segment's log: a JSON object whose last key is a checksum of what is before it.

```
{"record":"event","line":3,...,"crc32":"0a1b2c3d"}\n
^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ these bytes are summed
```

A line is whole when it ends in a newline and its checksum fits; anything less was never committed.
A float that JSON cannot hold travels as ``{"$float": "nan"}``: ``null`` stays free for "undefined".
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from moetrace.store import files

__all__ = [
    "MAX_CONTAINERS",
    "MAX_DEPTH",
    "MAX_LINE",
    "DamagedRecord",
    "open_line",
    "plain",
    "read_lines",
    "restored",
    "seal_line",
]

MAX_LINE = 16 << 20
"""Bytes that a line may have, its newline included."""

MAX_DEPTH = 64
"""Containers inside containers that a free-form value may have."""

MAX_CONTAINERS = 1 << 19
"""Opening brackets that a line may have, those in its texts included: each costs far more memory
than its byte."""

_CHUNK = 1 << 20
_TAIL = b',"crc32":"%08x"}\n'
_TAIL_LENGTH = len(_TAIL % 0)
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class DamagedRecord(ValueError):
    """A line or an array row that is not what its writer committed; the message says how."""


def seal_line(record: Mapping[str, Any]) -> bytes:
    r"""The line of a record that `plain` has been over, with its checksum and its newline.

    Raises:
        ValueError: The record is empty or too long.
        TypeError: JSON cannot hold it.

    >>> seal_line({"record": "end"})
    b'{"record":"end","crc32":"f6848587"}\n'
    """
    if not record:
        raise ValueError("found an empty record; a line holds at least one key")
    body = orjson.dumps(record)[:-1]
    line = body + _TAIL % zlib.crc32(body)
    if len(line) > MAX_LINE:
        raise ValueError(f"found a record of {len(line)} bytes; a line holds at most {MAX_LINE}")
    if _brackets(body) > MAX_CONTAINERS:
        raise ValueError(f"found a record of more than {MAX_CONTAINERS} lists and mappings")
    return line


def open_line(line: bytes) -> dict[str, Any]:
    """The record of a line.

    Raises:
        DamagedRecord: The line is not whole, or not a JSON object.
    """
    body, tail = line[:-_TAIL_LENGTH], line[-_TAIL_LENGTH:]
    # compared as bytes: read as a number, a checksum would take "A" for "a", one bit apart
    if tail != _TAIL % zlib.crc32(body):
        raise DamagedRecord("bad checksum")
    if _brackets(body) > MAX_CONTAINERS:
        raise DamagedRecord(f"more than {MAX_CONTAINERS} containers")
    try:
        record = orjson.loads(body + b"}")
    except orjson.JSONDecodeError as error:
        raise DamagedRecord(f"not JSON ({error.msg})") from None
    if not isinstance(record, dict):
        raise DamagedRecord("not a JSON object")
    return record


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def read_lines(log: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each line of an open log, as far as it went at the start.

    Only the last one may lack its newline: it is torn, or longer than a line may be, and then it is
    cut.
    """
    limit, start, pending = files.size(log), 0, b""
    while chunk := files.pread(log, _CHUNK, start + len(pending)):
        begin, searched = 0, len(pending)
        pending += chunk
        while (end := pending.find(b"\n", max(begin, searched)) + 1) > 0:
            yield start + begin, pending[begin:end]
            begin = end
            if start + begin >= limit:
                return
        start, pending = start + begin, pending[begin:]
        if len(pending) > MAX_LINE:
            break
    if pending:
        yield start, pending


def plain(value: Any, *, depth: int = 0) -> Any:
    """A free-form value as JSON can hold it; `restored` gives it back, tuples as lists.

    Raises:
        ValueError: Containers are nested too deep.
        TypeError: It holds something that is not a number, a string, a list or a mapping.

    >>> plain({"loss": float("nan"), "steps": (1, 2)})
    {'loss': {'$float': 'nan'}, 'steps': [1, 2]}
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"found more than {MAX_DEPTH} containers inside each other; flatten them")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, str):
        return _utf8(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {_utf8(str(key)): plain(item, depth=depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth=depth + 1) for item in value]
    raise TypeError(f"cannot store {value!r}; pass numbers, strings, lists and mappings")


def restored(value: Any, *, depth: int = 0) -> Any:
    """The value that `plain` was given.

    Raises:
        DamagedRecord: Containers are nested too deep, or a float has no such name.
    """
    if depth > MAX_DEPTH:
        raise DamagedRecord(f"more than {MAX_DEPTH} containers inside each other")
    if isinstance(value, dict):
        if value.keys() == {"$float"}:
            if value["$float"] not in ("nan", "inf", "-inf"):
                raise DamagedRecord("a float with an unknown name")
            return _NONFINITE[value["$float"]]
        return {key: restored(item, depth=depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item, depth=depth + 1) for item in value]
    return value


def _utf8(text: str) -> str:
    # a path that is not UTF-8 arrives with lone surrogates, which JSON cannot hold
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
