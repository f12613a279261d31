# pyright: strict
"""A table as one JSON array with an object per row, written as it comes."""

from pathlib import Path
from typing import ClassVar

import orjson

from moetrace.export.tables import Batch, Table

__all__ = ["JsonFile"]


class JsonFile:
    """A table that is written row by row.

    Args:
        path: The file.
        table: What is written.
    """

    suffix: ClassVar[str] = ".json"

    def __init__(self, path: Path, table: Table) -> None:
        self._columns = tuple(table.columns)
        self._file = path.open("wb")
        self._between = b"[\n"

    def add(self, batch: Batch) -> None:
        """Write rows; a number that is not finite is null."""
        for row in zip(*(batch[name] for name in self._columns), strict=True):
            record = dict(zip(self._columns, row, strict=True))
            self._file.write(self._between + orjson.dumps(record))
            self._between = b",\n"

    def close(self) -> None:
        """End the array."""
        self._file.write(b"[]\n" if self._between.startswith(b"[") else b"\n]\n")
        self._file.close()
