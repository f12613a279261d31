"""Tables of experts that are looked up by index, where a run counted them: what the page holds.

Letters: W windows, T tables.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.index_picture import usage_picture
from moetrace.index_stats import IndexStats
from moetrace.index_verdict import ADVICE, index_verdicts
from moetrace.report.finding import Finding
from moetrace.report.names import short_names, shown
from moetrace.report.packing import pack_integers, pack_reals
from moetrace.run import Run
from moetrace.snapshot import Snapshot

__all__ = ["FIGURES", "Maps", "index_findings", "index_tables", "usage_maps"]

Maps = Mapping[str, tuple[list[int], NDArray[np.uint8]]]
"""Span and picture of the newest window that keeps counts per expert, by table."""

FIGURES = (
    *("coverage", "coverage_floor", "unevenness", "unevenness_floor"),
    *("hot_indices", "hot_indices_floor", "row_unevenness", "row_unevenness_floor"),
    *("column_unevenness", "column_unevenness_floor"),
)
"""The curves of a table, by their keys in `IndexStats.metrics`."""

MOST = 64
"""Tables that the page holds."""

MAPPED = 16
"""Tables that the page has a map of."""

PIXELS = 256
"""Rows and columns of a map: beyond it neighbouring experts share a pixel."""

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


def usage_maps(run: Run, histories: Mapping[str, Sequence[Snapshot]]) -> Maps:
    """A map of each table, of the newest window that keeps counts per expert.

    Cost: reads those counts, for `MAPPED` tables at most.
    """
    maps: dict[str, tuple[list[int], NDArray[np.uint8]]] = {}
    for phase, history in histories.items():
        tables = {stats.layer: stats for snapshot in history for stats in snapshot.indices}
        for layer, stats in list(tables.items())[:MAPPED]:
            for span, counts, _ in deque(run.draws(layer, phase=phase), maxlen=1):
                columns = len(stats.column_draws)
                maps[layer] = span, usage_picture(counts, columns=columns, most=PIXELS)
        if tables:
            break
    return maps


def index_tables(
    histories: Mapping[str, Sequence[Snapshot]], maps: Maps | None = None
) -> dict[str, Any] | None:
    """The tables of the first phase that has any; None where there are none.

    Curves are one row per recorded window; marginals, rank curve and the busiest experts are of
    each table's newest window.

    Args:
        histories: The snapshots of each phase, in step order.
        maps: A picture by table, where there is one.
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
                    _table(newest[name], short, (maps or {}).get(name))
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


def _table(
    stats: IndexStats, short: str, picture: tuple[list[int], NDArray[np.uint8]] | None
) -> dict[str, Any]:
    metrics = stats.metrics()
    return {
        "map": None
        if picture is None
        else {"span": picture[0], "pixels": pack_integers(picture[1])},
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
