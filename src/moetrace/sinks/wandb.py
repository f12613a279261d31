"""Snapshots in Weights & Biases, beside whatever else logs there.

Rows carry their step (``moe/step``) and never use ``step=``: rows with a step that lies behind the
run's own counter are dropped in silence, which is what happens beside any other logger.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from moetrace.alerts import Alert
from moetrace.index_keys import hot_rows
from moetrace.printable import printable
from moetrace.sinks.charts import HEATMAP_EVERY, Charts
from moetrace.sinks.names import tracker_name
from moetrace.snapshot import Snapshot

__all__ = ["WandbSink"]

_STEP = "moe/step"


class WandbSink:
    """Logs to a run of Weights & Biases.

    Args:
        run: A run, or the ``wandb`` module. With the module, the run that is open now, or else the
            one that is when the first window comes. None takes the open run and starts one if there
            is none; that one is finished at the end.
        per_layer: Also five scalars, a picture and a histogram for each layer.
        heatmap_every: Optimizer steps between pictures; None draws none.
        alias: Other names for keys, or for groups of them: ``{"expert_usage": "peer"}`` makes
            ``expert_usage/hot_experts_count`` ``peer/hot_experts_count``.
        define: Tell W&B to draw ``moe/*`` over ``moe/step``. Pass False where something else
            defines the axis of all keys, as the Trainer's callback does.
        project: Of a run that the sink starts.

    Raises:
        ImportError: A run has to be started and wandb is not installed.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        per_layer: bool = False,
        heatmap_every: int | None = HEATMAP_EVERY,
        alias: Mapping[str, str] | None = None,
        define: bool = True,
        project: str = "moetrace",
    ) -> None:
        self._charts = Charts(per_layer=per_layer, heatmap_every=heatmap_every, alias=alias)
        self._defined: set[str] | None = set() if define else None
        self._own = False
        self._module: Any = None
        if run is None:
            wandb = _wandb()
            self._own = wandb.run is None
            run = wandb.run or wandb.init(project=project)
        elif isinstance(run, ModuleType):
            self._module, run = run, getattr(run, "run", None)
        self._run: Any = run

    def write(self, snapshot: Snapshot, /) -> None:
        """Log a row of its scalars, with pictures and histograms where they are due.

        Raises:
            RuntimeError: The sink was given the module, and no run is open.
        """
        row: dict[str, Any] = dict(self._charts.scalars(snapshot))
        if self._charts.note(snapshot):
            wandb = _wandb()
            for key, image in self._charts.images(snapshot).items():
                row[key] = wandb.Image(image)
            for key, found in self._charts.histograms(snapshot).items():
                row[key] = wandb.Histogram(np_histogram=(found.counts, found.edges))
            if hot := hot_rows(snapshot.indices):
                row[self._charts.name("expert_usage/hot_experts")] = wandb.Table(
                    columns=["layer", "expert"], data=[list(pair) for pair in hot]
                )
        self._log(row, snapshot.phase, snapshot.last_step)

    def alert(self, alert: Alert, /) -> None:
        """Log how many layers its kind holds in; where it starts, send an alert of W&B's own."""
        self._log(self._charts.alert(alert), alert.phase, alert.step)
        send = getattr(self._run, "alert", None)
        if alert.state == "started" and callable(send):
            send(title=f"MoE: {alert.kind}", text=printable(alert.line, longest=1000), level="WARN")

    def close(self) -> None:
        """Finish the run, if it is the sink's own."""
        if self._own:
            self._run.finish()

    def _log(self, row: dict[str, Any], phase: str, step: int) -> None:
        if self._run is None:
            self._run = getattr(self._module, "run", None)
        if self._run is None:
            raise RuntimeError(
                "found no open run of W&B; call wandb.init() before the first window"
            )
        self._define("" if phase == "train" else f"{tracker_name(phase)}/")
        self._run.log({**row, _STEP: step, "train/global_step": step})

    def _define(self, prefix: str) -> None:
        define = getattr(self._run, "define_metric", None)
        if self._defined is None or prefix in self._defined or not callable(define):
            return
        if not self._defined:
            define(_STEP, hidden=True)
            define("moe_health/*", step_metric=_STEP)
        for group in ("moe", "alerts", "expert_usage"):
            define(f"{prefix}{group}/*", step_metric=_STEP)
        for name in map(tracker_name, self._charts.alias.values()):
            # of a group or of a single key
            define(f"{prefix}{name}/*", step_metric=_STEP)
            define(f"{prefix}{name}", step_metric=_STEP)
        self._defined.add(prefix)


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError("WandbSink needs wandb: pip install 'moetrace[wandb]'") from error
