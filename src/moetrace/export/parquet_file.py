"""A table as Parquet, by pyarrow or by polars, whichever is there."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, ClassVar

from moetrace.export.tables import Batch, Kind, Table, finite

__all__ = ["ParquetFile"]

MOST_ROWS = 200_000
"""Rows that wait in memory for a row group of their own."""

ARROW: dict[Kind, str] = {"int": "int64", "float": "float64", "text": "string", "bool": "bool_"}
POLARS: dict[Kind, str] = {"int": "Int64", "float": "Float64", "text": "String", "bool": "Boolean"}


class ParquetFile:
    """A table that is written in groups of rows.

    With polars in place of pyarrow the whole table is in memory until it is closed.

    Args:
        path: The file.
        table: What is written.

    Raises:
        ImportError: Neither pyarrow nor polars is installed.
    """

    suffix: ClassVar[str] = ".parquet"

    def __init__(self, path: Path, table: Table) -> None:
        self._path, self._columns = path, dict(table.columns)
        self._waiting: dict[str, list[Any]] = {name: [] for name in self._columns}
        self._arrow: Any = None
        if importlib.util.find_spec("pyarrow") is not None:
            arrow = importlib.import_module("pyarrow")
            fields = [(name, getattr(arrow, ARROW[kind])()) for name, kind in self._columns.items()]
            self._schema = arrow.schema(fields)
            parquet = importlib.import_module("pyarrow.parquet")
            self._arrow = parquet.ParquetWriter(path, self._schema, compression="zstd")
        elif importlib.util.find_spec("polars") is None:
            raise ImportError(
                "Parquet needs pyarrow or polars, and neither is installed; "
                "pip install 'moetrace[parquet]' brings one, or take --format csv"
            )

    def add(self, batch: Batch) -> None:
        """Take rows."""
        for name, values in self._waiting.items():
            values += map(finite, batch[name])
        if self._arrow is not None and len(next(iter(self._waiting.values()))) >= MOST_ROWS:
            self._write_group()

    def close(self) -> None:
        """Write what waits, and the footer."""
        if self._arrow is not None:
            self._write_group()
            self._arrow.close()
            return
        polars = importlib.import_module("polars")
        schema = {name: getattr(polars, POLARS[kind]) for name, kind in self._columns.items()}
        polars.DataFrame(self._waiting, schema=schema).write_parquet(self._path)

    def _write_group(self) -> None:
        arrow = importlib.import_module("pyarrow")
        self._arrow.write_table(arrow.table(self._waiting, schema=self._schema))
        self._waiting = {name: [] for name in self._columns}
