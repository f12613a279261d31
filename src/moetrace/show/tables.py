"""The tables of experts of one window: a row each, and what is wrong with one."""

from collections.abc import Sequence
from typing import Any, TextIO

from moetrace.index_stats import IndexStats
from moetrace.index_verdict import index_verdicts
from moetrace.printable import printable
from moetrace.probe_stats import stored_fields
from moetrace.show.columns import Cell, print_line, print_table

__all__ = ["print_tables", "table_records"]

HEAD = ("table", "draws", "coverage", "floor", "unevenness", "floor", "hot", "dead keys")

_BAD = frozenset(("unreachable_experts", "dead_sub_keys", "low_coverage"))


def print_tables(tables: Sequence[IndexStats], stream: TextIO) -> None:
    """Print a row per table, what the columns mean, and what no balance explains."""
    print_table(HEAD, [_row(table) for table in tables], stream)
    print_line(
        "coverage: experts drawn over all; unevenness: of the draws, nats; floor: what a", stream
    )
    print_line(
        "uniform draw would show. dead keys: sub-keys of rows and columns without a draw.", stream
    )
    for table in tables:
        for verdict in index_verdicts(table):
            if verdict.met:
                text = f"{table.layer}: {verdict.text}"
                print_line(printable(text, longest=1000), stream)


def table_records(tables: Sequence[IndexStats]) -> list[dict[str, Any]]:
    """The tables as plain numbers, strings, lists and dicts, with every metric, for programs."""
    return [
        {
            **{name: getattr(table, name) for name in stored_fields(table)},
            "metrics": table.metrics(),
            "verdicts": {item.kind: item.text for item in index_verdicts(table) if item.met},
        }
        for table in tables
    ]


def _row(table: IndexStats) -> list[Cell]:
    found = table.metrics()
    bad = any(item.met and item.kind in _BAD for item in index_verdicts(table))
    dead = table.row_draws.count(0) + table.column_draws.count(0)
    keys = len(table.row_draws) + len(table.column_draws)
    return [
        Cell(printable(table.layer)),
        Cell(f"{table.draws:,}"),
        Cell(_number(found["coverage"]), "bold red" if bad else ""),
        Cell(_number(found["coverage_floor"]), "dim"),
        Cell(_number(found["unevenness"])),
        Cell(_number(found["unevenness_floor"]), "dim"),
        Cell("-" if table.hot is None else f"{table.hot:,}", "yellow" if table.sure_hot else ""),
        Cell(f"{dead}/{keys}" if keys else "-"),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
