# pyright: strict
"""A run as tables: CSV, JSON or Parquet, in one pass over its windows."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Protocol

import orjson

from moetrace.export.csv_file import CsvFile
from moetrace.export.files import Drafts
from moetrace.export.json_file import JsonFile
from moetrace.export.parquet_file import ParquetFile
from moetrace.export.tables import (
    EVENTS,
    EXPERTS,
    GRADIENTS,
    INDICES,
    LAYERS,
    WEIGHTS,
    Batch,
    Table,
    finite,
)
from moetrace.run import Run

__all__ = ["TABLE_FORMS", "write_tables"]


class _TableFile(Protocol):
    """What writes one table."""

    suffix: ClassVar[str]

    def __init__(self, path: Path, table: Table) -> None: ...

    def add(self, batch: Batch) -> None: ...

    def close(self) -> None: ...


TABLE_FORMS: Mapping[str, type[_TableFile]] = {
    "csv": CsvFile,
    "json": JsonFile,
    "parquet": ParquetFile,
}
"""Formats, and what writes a table of each."""


def write_tables(run: Run, drafts: Drafts, form: str, *, experts: bool) -> dict[str, int]:
    """Write a run's tables; one window is in memory at a time.

    Args:
        run: The run.
        drafts: Where to.
        form: A key of `TABLE_FORMS`.
        experts: Also a row per window, layer and expert.

    Returns:
        How many rows each table has, by its name.
    """
    kind = TABLE_FORMS[form]
    tables = [LAYERS, *([EXPERTS] if experts else []), INDICES, WEIGHTS, GRADIENTS]
    rows = {table.name: 0 for table in (*tables, EVENTS)}
    with ExitStack() as closing:
        files: dict[str, _TableFile] = {}
        for table in (*tables, EVENTS):
            file = kind(drafts.draft(table.name + kind.suffix), table)
            closing.callback(file.close)
            files[table.name] = file
        for phase in run.phases:
            for window in run.windows(phase=phase):
                for table in tables:
                    rows[table.name] += _add(files[table.name], table.rows(window))
        rows[EVENTS.name] = _add(files[EVENTS.name], _events(run))
    return rows


def _add(file: _TableFile, batch: Batch) -> int:
    count = len(next(iter(batch.values()), ()))
    if count:
        file.add(batch)
    return count


def _events(run: Run) -> Batch:
    batch: dict[str, list[Any]] = {name: [] for name in EVENTS.columns}
    for event in run.events():
        own = {key: value for key, value in event.items() if key not in batch or key == "fields"}
        row = {**event, "fields": orjson.dumps(own, default=str).decode("utf-8")}
        for name, values in batch.items():
            values.append(finite(row[name]))
    return batch
