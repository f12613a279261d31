"""The windows of a run read so far: a refresh opens the folder and reads what came since."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moetrace.report.alarms import Alarm, alarms
from moetrace.report.facts import counters, probe_findings
from moetrace.report.finding import Finding, most_urgent_first
from moetrace.report.tables import index_findings
from moetrace.report.verdict import verdict
from moetrace.report.windows import Layer, Windows, layers_of, tabulate
from moetrace.run import Run, open_run
from moetrace.snapshot import Snapshot

__all__ = ["Follower", "View"]

AGAIN = 4
"""Newest windows that are read again: other ranks may have added to them."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What one frame shows.

    Attributes:
        run: The run as it stood at the refresh.
        windows: The windows of the phase, or None where there is none yet.
        findings: The verdict, the most urgent first.
        alarms: The alerts of the run, those that hold first.
        wall_times: When each window closed, Unix seconds.
        health: The tracer's own state in the newest window.
    """

    run: Run
    windows: Windows | None
    findings: tuple[Finding, ...]
    alarms: tuple[Alarm, ...]
    wall_times: tuple[float, ...]
    health: dict[str, Any]


class Follower:
    """Follows one phase of a run folder.

    Args:
        path: The folder that ``attach`` was given.
        phase: The phase; None takes ``train``, or else the first there is.
    """

    def __init__(self, path: str | os.PathLike[str], *, phase: str | None = None) -> None:
        self._path, self._phase = path, phase
        self._windows: Windows | None = None
        self._walls: list[float] = []
        self._life: tuple[Any, ...] = ()
        self._odd: tuple[Finding, ...] = ()

    def refresh(self) -> View:
        """Open the folder and read the windows that are new.

        Cost: every line of the logs, and the arrays of the new windows and the last few before.

        Raises:
            RunNotReadable: There is no run, or none that can be read.
            ValueError: It has windows, and none of the phase that was asked for.
        """
        run = open_run(self._path)
        phase = self._chosen(run)
        life = (run.run_id, phase, run.attempts, run.ranks, run.layers, run.experts)
        if phase is None or life != self._life:
            # another attempt may have written steps again, another rank may add to every window
            self._windows, self._walls, self._life = None, [], life
            self._odd = ()
        newest: Snapshot | None = None
        if phase is not None:
            newest = self._read(run, phase)
        windows = self._windows
        found = list(self._odd)
        if windows is not None and (windows.layers or not found):
            found = [*found, *verdict(windows)]
        return View(
            run,
            windows,
            tuple(most_urgent_first(found)),
            tuple(alarms(run)),
            tuple(self._walls),
            dict(newest.health) if newest is not None else {},
        )

    def _chosen(self, run: Run) -> str | None:
        if self._phase is None:
            return next(iter(run.phases), None)
        if run.phases and self._phase not in run.phases:
            known = ", ".join(run.phases)
            raise ValueError(f"found no phase {self._phase!r}; this run has {known}")
        return self._phase if self._phase in run.phases else None

    def _read(self, run: Run, phase: str) -> Snapshot | None:
        known = self._windows
        kept = 0 if known is None else max(0, len(known) - AGAIN)
        after = None if known is None or not kept else int(known.spans[kept - 1, 1])
        new = list(run.windows(phase=phase, after=after))
        if known is not None and kept:
            layers: Sequence[Layer] = known.layers
        else:
            layers = layers_of(new, run.layers)
        table = tabulate(phase, [[window] for window in new], layers)
        self._windows = _joined(known, kept, table) if known is not None and kept else table
        if not len(self._windows):
            self._windows = None
        self._walls = [*self._walls[:kept], *(window.wall_time for window in new)]
        if new:
            self._odd = (
                *index_findings(new[-1:]),
                *counters(new[-1:]),
                *probe_findings(new[-1:]),
            )
        return new[-1] if new else None


def _joined(known: Windows, kept: int, new: Windows) -> Windows:
    """The first windows of one table, then those of another; what is withheld is the newest."""
    metrics = {
        name: np.concatenate([known.metrics[name][:kept], new.metrics[name]])
        for name in new.metrics
    }
    return replace(
        new,
        spans=np.concatenate([known.spans[:kept], new.spans]),
        tokens=np.concatenate([known.tokens[:kept], new.tokens]),
        cells=np.concatenate([known.cells[:kept], new.cells]),
        metrics=metrics,
    )
