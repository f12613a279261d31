"""Tables of experts that are looked up by index, where a run counted them: what the page holds.

Letters: W windows, T tables.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moetrace.index_stats import IndexStats
from moetrace.index_verdict import ADVICE, index_verdicts
from moetrace.report.finding import Finding
from moetrace.report.names import short_names, shown
from moetrace.report.packing import pack_reals
from moetrace.snapshot import Snapshot

__all__ = ["FIGURES", "index_findings", "index_tables"]

FIGURES = (
    *("coverage", "coverage_floor", "unevenness", "unevenness_floor"),
    *("hot_indices", "hot_indices_floor", "row_unevenness", "row_unevenness_floor"),
    *("column_unevenness", "column_unevenness_floor"),
)
"""The curves of a table, by their keys in `IndexStats.metrics`."""

MOST = 64
"""Tables that the page holds."""

LISTED = 20
"""Busiest experts of a table that are listed."""

CALM = frozenset(("hot_experts", "persistent_hot_experts"))
"""Kinds of verdict that warn; the others say that something is broken."""


def index_findings(history: Sequence[Snapshot]) -> list[Finding]:
    """What the newest window says of each table, with what to try."""
    found = []
    for stats in history[-1].indices if history else ():
        for verdict in index_verdicts(stats):
            if verdict.met:
                tone = "warn" if verdict.kind in CALM else "bad"
                text = f"{shown(stats.layer)}: {verdict.text}."
                found.append(Finding(tone, text, f"{ADVICE}."))
    return found


def index_tables(histories: Mapping[str, Sequence[Snapshot]]) -> dict[str, Any] | None:
    """The tables of the first phase that has any; None where there are none.

    Curves are one row per recorded window; marginals, rank curve and the busiest experts are of
    each table's newest window.
    """
    for phase, history in histories.items():
        newest: dict[str, IndexStats] = {}
        for snapshot in history:
            newest.update((stats.layer, stats) for stats in snapshot.indices)
        names = list(newest)[:MOST]
        if names:
            return {
                "phase": shown(phase),
                "spans": [[window.first_step, window.last_step] for window in history],
                "tables": [
                    _table(newest[name], short)
                    for name, short in zip(names, short_names(names), strict=True)
                ],
                "metrics": _curves(history, names),
            }
    return None


def _curves(history: Sequence[Snapshot], names: Sequence[str]) -> dict[str, Any]:
    place = {name: at for at, name in enumerate(names)}
    values = {name: np.full((len(history), len(names)), np.nan) for name in FIGURES}
    for row, snapshot in enumerate(history):
        for stats in snapshot.indices:
            if stats.layer in place:
                found = stats.metrics()
                for name in FIGURES:
                    value = found[name]
                    values[name][row, place[stats.layer]] = math.nan if value is None else value
    return {name: pack_reals(table) for name, table in values.items()}


def _table(stats: IndexStats, short: str) -> dict[str, Any]:
    metrics = stats.metrics()
    return {
        "name": shown(stats.layer),
        "short": shown(short),
        "experts": stats.num_experts,
        "tokens": stats.tokens,
        "draws": stats.draws,
        "used": stats.used,
        "rows": list(stats.row_draws),
        "columns": list(stats.column_draws),
        "ranks": list(stats.ranks),
        "rankDraws": list(stats.rank_draws),
        "top": [
            list(pair)
            for pair in zip(stats.top_experts[:LISTED], stats.top_draws[:LISTED], strict=True)
        ],
        "now": {
            name: metrics[name]
            for name in (*FIGURES, "dead_rows", "dead_columns", "mutual_information")
        },
    }
