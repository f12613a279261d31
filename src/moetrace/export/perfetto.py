# pyright: strict
"""A run as counters of a trace: what Perfetto and ``chrome://tracing`` open.

A process per phase, a counter per layer with a track per metric, and each alert as an instant. Time
is the wall clock, in microseconds of Unix time; a value stands where its window closed.

Source: the Trace Event Format of Chromium, JSON, phases M, C and i.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from moetrace.run import Run
from moetrace.snapshot import Snapshot

__all__ = ["SHOWN", "write_perfetto"]

SHOWN = ("load_cv", "max_vio", "max_vio_excess", "routing_entropy", "dead_experts")
"""Metrics of a layer that have a track."""


def write_perfetto(run: Run, path: Path) -> int:
    """Write a run as one trace; one window is in memory at a time.

    Where a clock was set back, a window keeps the time of the one before, so that time never runs
    backwards within a phase.

    Args:
        run: The run.
        path: The file.

    Returns:
        How many events it has.
    """
    count = 0
    with path.open("wb") as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        for event in _events(run):
            file.write((b",\n" if count else b"") + orjson.dumps(event))
            count += 1
        file.write(b"\n]}\n")
    return count


def _events(run: Run) -> Iterator[dict[str, Any]]:
    for process, phase in enumerate(run.phases, 1):
        name = f"moetrace {run.run_id} {phase}"
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
        reached = 0
        for window in run.windows(phase=phase):
            reached = max(reached, round(window.wall_time * 1e6))
            yield from _counters(window, process, reached)
    for event in run.events():
        if event["kind"] == "alert":
            yield {
                "ph": "i",
                "name": f"alert {event.get('state', '')}: {event.get('message', '')}",
                "cat": "alert",
                "pid": 1,
                "tid": 0,
                "ts": round(float(event["wall_time"]) * 1e6),
                "s": "g",
            }


def _counters(window: Snapshot, process: int, time: int) -> Iterator[dict[str, Any]]:
    steps = {"first_step": window.first_step, "last_step": window.last_step}
    yield {"ph": "C", "name": "window", "pid": process, "ts": time, "args": steps}
    for stats in window:
        metrics = stats.metrics()
        known = {name: metrics[name] for name in SHOWN if metrics[name] is not None}
        if known:
            yield {"ph": "C", "name": stats.layer, "pid": process, "ts": time, "args": known}
