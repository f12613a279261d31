"""Snapshots in Trackio, into a run object: a "current run" belongs to the thread that began it."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from moetrace.alerts import Alert
from moetrace.printable import printable
from moetrace.sinks.charts import HEATMAP_EVERY, Charts
from moetrace.snapshot import Snapshot

__all__ = ["TrackioSink"]


class TrackioSink:
    """Logs to a run of Trackio, at the snapshot's last step.

    Args:
        run: What ``trackio.init`` returned, or the ``trackio`` module for the run that is current
            on this thread. None takes the current run and starts one if there is none; that one is
            finished at the end.
        per_layer: Also five scalars, a picture and a histogram for each layer.
        heatmap_every: Optimizer steps between pictures; None draws none.
        alias: Other names for keys, or for groups of them: ``{"expert_usage": "peer"}`` makes
            ``expert_usage/hot_experts_count`` ``peer/hot_experts_count``.
        project: Of a run that the sink starts.

    Raises:
        ImportError: trackio is not installed.
        ValueError: The module is given and it has no current run.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        per_layer: bool = False,
        heatmap_every: int | None = HEATMAP_EVERY,
        alias: Mapping[str, str] | None = None,
        project: str = "moetrace",
    ) -> None:
        self._charts = Charts(per_layer=per_layer, heatmap_every=heatmap_every, alias=alias)
        self._trackio = _trackio()
        self._own = False
        if run is None or isinstance(run, ModuleType):
            current = importlib.import_module("trackio.context_vars").current_run
            if current.get() is None and run is not None:
                raise ValueError("found no current run of Trackio; call trackio.init() first")
            self._own = current.get() is None
            run = current.get() or self._trackio.init(project=project)
            if self._own:
                current.set(None)  # the run is the sink's: what others log must not land in it
        self._run: Any = run

    def write(self, snapshot: Snapshot, /) -> None:
        """Log its scalars, with pictures and histograms where they are due."""
        row: dict[str, Any] = dict(self._charts.scalars(snapshot))
        if self._charts.note(snapshot):
            for key, image in self._charts.images(snapshot).items():
                row[key] = self._trackio.Image(image)
            for key, found in self._charts.histograms(snapshot).items():
                row[key] = self._trackio.Histogram(np_histogram=(found.counts, found.edges))
        self._run.log(row, step=snapshot.last_step)

    def alert(self, alert: Alert, /) -> None:
        """Log how many layers its kind holds in, and its line as an alert where it starts."""
        self._run.log(self._charts.alert(alert), step=alert.step)
        if alert.state == "started":
            text = printable(alert.line, longest=1000)
            self._run.alert(title=f"MoE: {alert.kind}", text=text)

    def close(self) -> None:
        """Finish the run, if it is the sink's own."""
        if self._own:
            self._run.finish()


def _trackio() -> Any:
    try:
        return importlib.import_module("trackio")
    except ImportError as error:
        raise ImportError("TrackioSink needs trackio: pip install 'moetrace[trackio]'") from error
