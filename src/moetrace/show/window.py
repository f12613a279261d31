"""The metrics of one window, layer by layer."""

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from moetrace.metrics import FAR_OUT, HEAVY
from moetrace.printable import printable, span_text
from moetrace.routing_stats import RoutingStats
from moetrace.run import Run
from moetrace.show.columns import Cell, print_line, print_table
from moetrace.show.probes import (
    gradient_records,
    print_gradients,
    print_weights,
    weight_records,
)
from moetrace.show.tables import print_tables, table_records
from moetrace.snapshot import Snapshot

__all__ = ["show_table", "window_at", "window_record"]

HEAD = ("layer", "tokens", "CV", "MaxVio", "floor", "excess", "entropy", "dead")

MOST_REMARKS = 8

COUNTED = ("masked", "dropped", "nonfinite", "out_of_range", "identity")
"""Counters of a layer that are 0 where all is plain."""

TROUBLE = {
    "dropped": "assignments were dropped by a capacity limit",
    "nonfinite": "router decisions came from NaN or infinite logits",
    "out_of_range": "assignments went to experts that do not exist",
    "identity": "assignments went to identity experts, which compute nothing",
}
"""What is said about a counter that is not 0, summed over the layers."""


def show_table(run: Run, snapshot: Snapshot, *, stream: TextIO | None = None) -> None:
    """Print a window of a run: a row per layer, then what the columns mean; then what probes saw.

    Args:
        run: The run that it is of.
        snapshot: The window.
        stream: Where to; standard output by default.
    """
    out: TextIO = sys.stdout if stream is None else stream
    model = printable(str(run.manifest.get("model", "a model")))
    where = span_text(snapshot.first_step, snapshot.last_step)
    print_line(f"{model}, {printable(snapshot.phase)}, {where}", out)
    metrics = [stats.metrics() for stats in snapshot]
    rows = [_row(stats, found) for stats, found in zip(snapshot, metrics, strict=True)]
    if not rows and not snapshot.indices:
        print_line("no router was recorded in this window.", out)
    if rows:
        print_table(HEAD, rows, out)
        line = "MaxVio: heaviest expert over its fair share, minus 1; floor: what a uniform"
        print_line(line, out)
        line = "router would show by chance. Entropy in nats. dead: experts without a token."
        print_line(line, out)
    for remark in _remarks(snapshot):
        print_line(remark, out)
    if snapshot.indices:
        print_tables(snapshot.indices, out)
    if snapshot.weights:
        print_line("", out)
        print_weights(snapshot.weights, out)
    if snapshot.gradients:
        print_line("", out)
        print_gradients(snapshot.gradients, out)


def window_at(snapshots: Sequence[Snapshot], step: int | None) -> Snapshot:
    """The window that holds a step, or the last one.

    Args:
        snapshots: Windows of one phase, in the order of their steps.
        step: An optimizer step; None for the last window.

    Raises:
        ValueError: There is no window, or none that holds the step.
    """
    if not snapshots:
        raise ValueError("found no window; the first is written when it closes")
    if step is None:
        return snapshots[-1]
    for snapshot in snapshots:
        if snapshot.first_step <= step <= snapshot.last_step:
            return snapshot
    first, last = snapshots[0].first_step, snapshots[-1].last_step
    raise ValueError(f"found no window with step {step}; there are steps {first} to {last}")


def window_record(run: Run, snapshot: Snapshot) -> dict[str, Any]:
    """A window as plain numbers, strings, lists and dicts, for programs.

    ``layers`` hold the counts, every metric (None where it is undefined) and why it is withheld;
    ``tables`` the tables of experts with theirs, ``weights`` and ``gradients`` what probes
    recorded; ``summary`` the keys that a tracker shows.
    """
    return {
        "run_id": run.run_id,
        "phase": snapshot.phase,
        "first_step": snapshot.first_step,
        "last_step": snapshot.last_step,
        "summary": snapshot.metrics(),
        "layers": [
            {
                "layer": stats.layer,
                "num_experts": stats.num_experts,
                "top_k": stats.top_k,
                "scoring": stats.scoring,
                "tokens": stats.tokens,
                "calls": stats.calls,
                **{name: getattr(stats, name) for name in COUNTED},
                "tokens_per_expert": stats.tokens_per_expert.tolist(),
                "metrics": stats.metrics(),
                "withheld": stats.withheld(),
            }
            for stats in snapshot
        ],
        "tables": table_records(snapshot.indices),
        "weights": weight_records(snapshot),
        "gradients": gradient_records(snapshot),
    }


def _row(stats: RoutingStats, metrics: dict[str, float | None]) -> list[Cell]:
    excess, dead = metrics["max_vio_excess"] or 0.0, metrics["dead_experts_excess"] or 0.0
    balance = "bold red" if excess >= FAR_OUT else "yellow" if excess >= HEAVY else ""
    count = metrics["dead_experts"]
    return [
        Cell(printable(stats.layer)),
        Cell(f"{stats.tokens:,}"),
        Cell(_number(metrics["load_cv"])),
        Cell(_number(metrics["max_vio"]), balance),
        Cell(_number(metrics["max_vio_floor"]), "dim"),
        Cell(_number(metrics["max_vio_excess"]), balance),
        Cell(_number(metrics["routing_entropy"])),
        Cell(
            f"{'-' if count is None else f'{count:.0f}'}/{stats.num_experts}",
            "bold red" if dead >= 1 else "",
        ),
    ]


def _remarks(snapshot: Snapshot) -> list[str]:
    masked = max((stats.masked for stats in snapshot), default=0)
    remarks = [f"{masked:,} padding tokens were left out."] if masked else []
    remarks += [
        f"{total:,} {text}."
        for name, text in TROUBLE.items()
        if (total := sum(int(getattr(stats, name)) for stats in snapshot))
    ]
    reasons = [
        f"{printable(stats.layer)} has no {', '.join(names)}: {printable(reason)}"
        for stats in snapshot
        for reason, names in _by_reason(stats).items()
    ]
    if len(reasons) > MOST_REMARKS:
        reasons[MOST_REMARKS:] = [f"and {len(reasons) - MOST_REMARKS} more of this kind (--json)"]
    return remarks + reasons


def _by_reason(stats: RoutingStats) -> dict[str, list[str]]:
    """Metrics of the table that are withheld, by the reason."""
    found: dict[str, list[str]] = {}
    withheld = stats.withheld()
    for name in ("load_cv", "max_vio", "routing_entropy", "dead_experts"):
        if name in withheld:
            found.setdefault(withheld[name], []).append(name)
    return found


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
