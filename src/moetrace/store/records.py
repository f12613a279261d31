"""A snapshot as one record of the log: scalars as columns, and where its array rows stand.

A column is a list with one entry per layer, in the order of ``layer``. What is read back is held
against a strict schema; unknown keys are ignored, and so are the derived metrics: they are there
for people with jq, duckdb and polars.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.layout import SCORINGS
from moetrace.metrics import SHOWN
from moetrace.routing_stats import COUNTERS, RoutingStats, shown_columns
from moetrace.snapshot import PROBES, SCHEMA, Snapshot
from moetrace.store import arrays
from moetrace.store.arrays import TENSORS, ArrayShape
from moetrace.store.dense import DenseRows, dense_rows, with_dense
from moetrace.store.lines import DamagedRecord, plain
from moetrace.store.names import ARRAY_FILE
from moetrace.store.schema import column, integer, is_text, mapping, real, text
from moetrace.store.tables import from_columns, to_columns

__all__ = [
    "Rows",
    "SnapshotRecord",
    "columns",
    "groups_of",
    "parse_snapshot",
]

_INT64 = range(-(2**63), 2**63)
_SIGNED = frozenset(("margin_sum", "lse_sum"))
_IDENTITY = frozenset(("identity", "identity_experts"))
_SCORINGS = frozenset((*SCORINGS, "none"))


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of one group of layers stand: one row in each tensor of one file.

    Attributes:
        file: Name of the array file, within the segment.
        row: Which of its rows.
        shape: Its shape.
        data: Bytes before its first tensor.
        header_crc: Checksum of those bytes.
        crcs: Checksum of the row of each tensor.
    """

    file: str
    row: int
    shape: ArrayShape
    data: int
    header_crc: int
    crcs: tuple[int, ...]

    def to_record(self) -> dict[str, Any]:
        """The rows as they stand in the line."""
        return {
            "file": self.file,
            "row": self.row,
            "shape": [self.shape.rows, self.shape.layers, self.shape.experts],
            "dtypes": list(self.shape.types),
            "data": self.data,
            "header_crc32": self.header_crc,
            "crc32": list(self.crcs),
        }


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot without its vectors.

    Attributes:
        scalars: Fields of `Snapshot` by name, but identity and routing.
        layers: Names of the layers.
        columns: Scalar fields of `RoutingStats` by name, one entry per layer.
        groups: Rows of each group, with the positions of its layers.
        dense: Where counts per expert of tables stand.
    """

    scalars: dict[str, Any]
    layers: tuple[str, ...]
    columns: dict[str, list[Any]]
    groups: tuple[tuple[Rows, tuple[int, ...]], ...]
    dense: tuple[DenseRows, ...] = ()

    def snapshot(
        self,
        vectors: Sequence[Sequence[NDArray[np.int64]]],
        dense: Mapping[int, Sequence[NDArray[np.int64]]],
        *,
        run_id: str,
        rank: int,
        attempt: int,
    ) -> Snapshot:
        """The snapshot.

        Args:
            vectors: Per group the rows of its tensors, each of shape ``(L, E)``.
            dense: Counts and sums of scores of tables, by position; without, reductions alone.
            run_id: The run.
            rank: The rank whose segment this is.
            attempt: The attempt whose segment this is.
        """
        routing: dict[int, RoutingStats] = {}
        for (_, positions), tensors in zip(self.groups, vectors, strict=True):
            for row, position in enumerate(positions):
                routing[position] = RoutingStats(
                    layer=self.layers[position],
                    **{name: entries[position] for name, entries in self.columns.items()},
                    **{name: tensors[index][row] for index, name in enumerate(TENSORS)},
                )
        return Snapshot(
            run_id=run_id,
            rank=rank,
            attempt=attempt,
            routing=tuple(routing[position] for position in range(len(self.layers))),
            **{**self.scalars, "indices": with_dense(self.scalars["indices"], dense)},
        )


def columns(snapshot: Snapshot) -> dict[str, Any]:
    """The part of a snapshot's record that needs no array file.

    Raises:
        TypeError: ``health`` holds something that cannot be stored.
    """
    stats = snapshot.routing
    record: dict[str, Any] = {
        "run_id": snapshot.run_id,
        "rank": int(snapshot.rank),
        "attempt": int(snapshot.attempt),
        "seq": int(snapshot.seq),
        "phase": plain(snapshot.phase),
        "first_step": int(snapshot.first_step),
        "last_step": int(snapshot.last_step),
        "wall_time": plain(float(snapshot.wall_time)),
        "schema": snapshot.schema,
        "health": plain(snapshot.health),
        "layer": [plain(item.layer) for item in stats],
        "num_experts": [int(item.num_experts) for item in stats],
        "top_k": [int(item.top_k) for item in stats],
        "scoring": [item.scoring for item in stats],
    }
    for name in COUNTERS:
        record[name] = [int(getattr(item, name)) for item in stats]
    record["identity_experts"] = [int(item.identity_experts) for item in stats]
    for name in _IDENTITY:
        if not any(record[name]):
            del record[name]
    for name, values in _shown(stats).items():
        record[name] = [plain(value) for value in values]
    for name in PROBES:
        if found := getattr(snapshot, name):
            record[name] = to_columns(found)
    return record


def _shown(stats: Sequence[RoutingStats]) -> Mapping[str, list[float | None]]:
    try:
        return shown_columns(stats)
    except Exception:  # a number for show must not cost the counts that it is made from
        return {name: [None] * len(stats) for name in SHOWN}


def groups_of(num_experts: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Positions of the layers with each number of experts.

    >>> groups_of([8, 4, 8])
    {8: (0, 2), 4: (1,)}
    """
    groups: dict[int, list[int]] = {}
    for position, experts in enumerate(num_experts):
        groups.setdefault(experts, []).append(position)
    return {experts: tuple(positions) for experts, positions in groups.items()}


def parse_snapshot(record: Mapping[str, Any]) -> SnapshotRecord:
    """The snapshot that a record describes.

    Raises:
        DamagedRecord: A field is missing, of another type, or out of range.
    """
    if record.get("schema") != SCHEMA:
        raise DamagedRecord(
            f"snapshot schema {record.get('schema')!r:.40}, this version reads {SCHEMA}"
        )
    scalars: dict[str, Any] = {
        name: integer(record, name) for name in ("seq", "first_step", "last_step", "schema")
    }
    scalars["phase"] = text(record, "phase")
    scalars["wall_time"] = real(record, "wall_time")
    scalars["health"] = mapping(record, "health")
    for name, kind in PROBES.items():
        scalars[name] = from_columns(kind, mapping(record, name) if name in record else {})
    layers = tuple(column(record, "layer"))
    if not all(map(is_text, layers)) or len(set(layers)) != len(layers):
        raise DamagedRecord("layer names that are no names, or not distinct")
    table: dict[str, list[Any]] = {}
    for name in ("num_experts", "top_k", "identity_experts", *COUNTERS):
        if name in _IDENTITY and name not in record:
            table[name] = [0] * len(layers)  # none has any, or it was written by 0.1
            continue
        table[name] = column(record, name, length=len(layers))
        lowest = _INT64.start if name in _SIGNED else 0
        if not all(type(item) is int and lowest <= item < _INT64.stop for item in table[name]):
            raise DamagedRecord(f"{name} out of range")
    table["scoring"] = column(record, "scoring", length=len(layers))
    if not all(isinstance(item, str) and item in _SCORINGS for item in table["scoring"]):
        raise DamagedRecord("unknown scoring")
    positions = groups_of(table["num_experts"])
    groups = tuple(_rows(item) for item in column(record, "arrays", length=len(positions)))
    for group, (experts, members) in zip(groups, positions.items(), strict=True):
        if (group.shape.experts, group.shape.layers) != (experts, len(members)):
            raise DamagedRecord("array rows of another shape than the layers")
    return SnapshotRecord(
        scalars,
        layers,
        table,
        tuple(zip(groups, positions.values(), strict=True)),
        dense_rows(record, scalars["indices"]),
    )


def _rows(item: Any) -> Rows:
    if not isinstance(item, dict):
        raise DamagedRecord("arrays is not a list of objects")
    file = text(item, "file")
    if not ARRAY_FILE.fullmatch(file):
        raise DamagedRecord("arrays name a file that is none of a segment's")
    sizes = column(item, "shape", length=3)
    if not all(type(size) is int and size >= 1 for size in sizes):
        raise DamagedRecord("an array shape that is none")
    counts, *reals = column(item, "dtypes", length=len(TENSORS))
    if counts not in ("I32", "I64") or reals != ["I64", "I64"]:
        raise DamagedRecord("unknown number types of arrays")
    if sizes[0] > arrays.MAX_ROWS or sizes[1] * sizes[2] > arrays.MAX_ENTRIES:
        raise DamagedRecord(f"arrays of shape {sizes}, larger than this version reads")
    crcs = column(item, "crc32", length=len(TENSORS))
    if not all(type(crc) is int for crc in crcs):
        raise DamagedRecord("array checksums that are none")
    return Rows(
        file=file,
        row=integer(item, "row", below=sizes[0]),
        shape=ArrayShape(rows=sizes[0], layers=sizes[1], experts=sizes[2], counts=counts),
        data=integer(item, "data", below=arrays.MAX_HEADER),
        header_crc=integer(item, "header_crc32"),
        crcs=tuple(crcs),
    )
