"""What the page holds of a run: every window exactly, or wider ones where it would burst."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moetrace.report.names import json_island, short_names, shown
from moetrace.report.packing import pack_integers, pack_reals
from moetrace.report.probes import Series, group_norms, router_norms, weight_series
from moetrace.report.tables import Maps, index_tables
from moetrace.report.windows import Layer, Windows, grouped, tabulate
from moetrace.snapshot import Snapshot

__all__ = ["MOST_LAYERS", "WORST", "build", "layers_drawn", "worst_layers"]

MOST_LAYERS = 1000
"""Layers that the page draws: a map of more would be taller than a canvas may be."""

WORST = 3
"""Layers that the curves name and colour; the others are drawn in grey."""


def build(
    histories: Mapping[str, Sequence[Snapshot]],
    layers: Sequence[Layer],
    exact: Mapping[str, Windows],
    *,
    cap: int,
    maps: Maps | None = None,
) -> str:
    """The page's data as a JSON island.

    Args:
        histories: The snapshots of each phase, in step order.
        layers: The rows of the heatmap; without any, the page holds tables of experts and the
            curves of other probes alone.
        exact: The windows of each phase, one row per snapshot.
        cap: Most characters that the island should have. Where it would have more, neighbouring
            windows are added up until it fits; the last window of a phase always stays as it is.
            A single window that is larger than the cap is kept all the same.
        maps: Pictures of tables of experts.

    Returns:
        The island; each phase says how many windows the run has, and holds those of the page.
    """
    names = [shown(layer.name) for layer in layers]
    rows = [
        {"name": name, "short": short, "experts": layer.num_experts, "topK": layer.top_k}
        for layer, name, short in zip(layers, names, short_names(names), strict=True)
    ]
    looked_up = index_tables(histories, maps)
    tables = dict(exact)
    probed = {phase: _probed(snapshots, layers) for phase, snapshots in histories.items()}
    while True:
        phases = [
            {
                **_packed(tables[phase], len(snapshots)),
                **_at_ends(probed[phase], tables[phase], snapshots),
            }
            for phase, snapshots in histories.items()
        ]
        island = json_island({"layers": rows, "phases": phases, "tables": looked_up})
        longest = max(map(len, tables.values()), default=0)
        if len(island) <= cap or longest <= 2:
            return island
        # Added-up counts need more bits each, so the aim is a little below the cap.
        factor = 0.9 * cap / len(island)
        tables = {
            phase: tabulate(phase, grouped(snapshots, int(len(tables[phase]) * factor)), layers)
            for phase, snapshots in histories.items()
        }


def worst_layers(windows: Windows) -> list[int]:
    """Positions of the layers furthest over their noise floor in the last window, worst first."""
    excess = windows.metrics["max_vio_excess"][-1]
    order = np.argsort(-np.nan_to_num(excess, nan=-np.inf), kind="stable")
    return [int(index) for index in order if not np.isnan(excess[index])][:WORST]


def layers_drawn(windows: Windows, *, most: int = MOST_LAYERS) -> tuple[Layer, ...]:
    """The layers furthest over their noise floor in the last window, in the model's order."""
    excess = np.nan_to_num(windows.metrics["max_vio_excess"][-1], nan=-np.inf)
    kept = np.sort(np.argsort(-excess, kind="stable")[:most])
    return tuple(windows.layers[int(at)] for at in kept)


def _packed(windows: Windows, recorded: int) -> dict[str, Any]:
    return {
        "name": shown(windows.phase),
        "recorded": recorded,
        "spans": windows.spans.tolist(),
        "worst": worst_layers(windows),
        "tokens": pack_integers(windows.tokens),
        "cells": pack_integers(windows.cells),
        "metrics": {name: pack_reals(values) for name, values in windows.metrics.items()},
    }


def _probed(
    history: Sequence[Snapshot], layers: Sequence[Layer]
) -> dict[str, tuple[list[dict[str, Any]], Series]]:
    """Curves of the other probes, each with what its columns are called and whose layer it is."""
    series = {
        "weights": weight_series(history),
        "groups": group_norms(history),
        "routers": router_norms(history),
    }
    names = [layer.name for layer in layers]
    return {
        key: (_columns(found.columns, names), found)
        for key, found in series.items()
        if found.columns
    }


def _columns(columns: Sequence[tuple[str, str]], layers: Sequence[str]) -> list[dict[str, Any]]:
    found = [_column(*column, layers) for column in columns]
    shorts = short_names([column["name"] for column in found])
    return [{**column, "short": short} for column, short in zip(found, shorts, strict=True)]


def _column(layer: str, name: str, layers: Sequence[str]) -> dict[str, Any]:
    # a gradient knows its block, model.layers.0; the router in it is model.layers.0.mlp
    own = (at for at, other in enumerate(layers) if f"{other}.".startswith(f"{layer}."))
    at = next(own, -1) if layer else -1
    return {"layer": at, "name": shown(f"{layer} {name}" if layer else name), "part": shown(name)}


def _at_ends(
    probed: Mapping[str, tuple[list[dict[str, Any]], Series]],
    windows: Windows,
    history: Sequence[Snapshot],
) -> dict[str, Any]:
    """The curves at the last recorded window of each window of the page: states, not sums."""
    last_steps = np.array([snapshot.last_step for snapshot in history])
    ends = [int(np.flatnonzero(last_steps == last)[-1]) for _, last in windows.spans.tolist()]
    return {
        key: {
            "columns": columns,
            "metrics": {
                name: pack_reals(table) for name, table in series.rows(ends).values.items()
            },
        }
        for key, (columns, series) in probed.items()
    }
