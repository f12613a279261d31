"""Snapshots in MLflow, into a run whose id is taken when the sink is made.

MLflow's "active run" belongs to a thread: its module functions, called from a sink's thread, would
open a second run in silence.
"""

import importlib
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from moetrace.alerts import Alert
from moetrace.sinks.charts import HEATMAP_EVERY, Charts
from moetrace.snapshot import Snapshot

__all__ = ["MlflowSink"]

_MOST_METRICS = 1000


class MlflowSink:
    """Logs to a run of MLflow.

    Args:
        run: A run, its id, or the ``mlflow`` module for the run that is active now on this thread.
            None takes the active run and starts one if there is none; that one is ended at the end.
        per_layer: Also five scalars and a picture for each layer.
        heatmap_every: Optimizer steps between pictures; None draws none. Pictures need Pillow.
        alias: Other names for keys, or for groups of them: ``{"expert_usage": "peer"}`` makes
            ``expert_usage/hot_experts_count`` ``peer/hot_experts_count``.

    Raises:
        ImportError: mlflow is not installed.
        ValueError: The module is given and no run is active.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        per_layer: bool = False,
        heatmap_every: int | None = HEATMAP_EVERY,
        alias: Mapping[str, str] | None = None,
    ) -> None:
        self._charts = Charts(per_layer=per_layer, heatmap_every=heatmap_every, alias=alias)
        mlflow = _mlflow()
        self._client = mlflow.MlflowClient()
        self._metric = mlflow.entities.Metric
        self._own = False
        if run is None or isinstance(run, ModuleType):
            active = mlflow.active_run()
            if active is None and run is not None:
                raise ValueError("found no active run of MLflow; call mlflow.start_run() first")
            self._own = active is None
            run = active or self._client.create_run(_experiment())
        self.run_id: str = run if isinstance(run, str) else run.info.run_id

    def write(self, snapshot: Snapshot, /) -> None:
        """Log its scalars at its last step, and pictures where they are due."""
        self._log(self._charts.scalars(snapshot), snapshot.last_step)
        if self._charts.note(snapshot):
            for key, image in self._charts.images(snapshot).items():
                self._client.log_image(self.run_id, image, key=key, step=snapshot.last_step)

    def alert(self, alert: Alert, /) -> None:
        """Log how many layers its kind holds in."""
        self._log(self._charts.alert(alert), alert.step)

    def close(self) -> None:
        """End the run, if it is the sink's own."""
        if self._own:
            self._client.set_terminated(self.run_id)

    def _log(self, scalars: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(key, value, now, step) for key, value in scalars.items()]
        for start in range(0, len(metrics), _MOST_METRICS):
            # Not in the background: this thread may wait, and MLflow works on several batches at
            # once, which in a store of files make the same folder and fail.
            batch = metrics[start : start + _MOST_METRICS]
            self._client.log_batch(self.run_id, batch, synchronous=True)


def _experiment() -> str:
    """The experiment in which ``mlflow.start_run`` would start a run."""
    return str(importlib.import_module("mlflow.tracking.fluent")._get_experiment_id())


def _mlflow() -> Any:
    try:
        return importlib.import_module("mlflow")
    except ImportError as error:
        raise ImportError("MlflowSink needs mlflow: pip install 'moetrace[mlflow]'") from error
