"""moetrace in the Trainer of lightning."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from moetrace.alerts import AlertRules
from moetrace.readers import Reader
from moetrace.settings import USUAL_RULES, Settings
from moetrace.sinks.charts import Charts
from moetrace.topology import Mesh, Topology
from moetrace.tracer import Tracer
from moetrace_adapters.session import Inbox, OnMissing, Session

__all__ = ["MoETraceCallback"]


class MoETraceCallback(Callback):
    """Traces what a Trainer fits: ``Trainer(..., callbacks=[MoETraceCallback("runs/exp1")])``.

    It attaches when training begins, after the sanity check, on every rank, and closes when it
    ends. A step is a batch after which an optimizer has stepped: several micro-batches under
    accumulation are one, and so are the steps of several optimizers in one batch. Validation is
    phase ``eval``. Each window goes to the trainer's loggers in the row of its last batch. A
    training that resumes goes on in the same run folder as a new attempt. ``validate``, ``test``
    and ``predict`` are not traced: put `moetrace.attach` around them.

    Args:
        run: As in `moetrace.attach`, like all but the last two.
        every: Steps per window.
        sample: Count only the first of every so many steps.
        sinks: Where else snapshots go: sinks, and names such as ``"console"``, which are made when
            training begins.
        probes: What to measure beside routing.
        readers: Your own readers.
        layers: Glob or globs over site names.
        topology: Where this process stands among those of the run.
        reduce: ``"live"`` shows the sinks of every rank the windows of all ranks together.
        alerts: What is worth an alert, None for no alerts.
        strict: Raise in the training what would only be logged; for tests and CI.
        log: Write every window to the trainer's loggers.
        on_missing: ``"raise"`` `NoRouterFound` when training begins on a model without a router, or
            ``"warn"`` and train untraced.
    """

    def __init__(
        self,
        run: str | os.PathLike[str] | None = None,
        *,
        every: int = 100,
        sample: int = 1,
        sinks: Iterable[Any] = (),
        probes: Iterable[Any] = (),
        readers: Iterable[Reader] | None = None,
        layers: str | Iterable[str] | None = None,
        topology: Topology | Mesh | None = None,
        reduce: Literal["read", "live"] = "read",
        alerts: AlertRules | Mapping[str, Any] | None = USUAL_RULES,
        strict: bool = False,
        log: bool = True,
        on_missing: OnMissing = "raise",
    ) -> None:
        settings = Settings(
            run=run,
            every=every,
            sample=sample,
            sinks=sinks,
            probes=probes,
            readers=readers,
            layers=layers,
            topology=topology,
            reduce=reduce,
            alerts=alerts,
            strict=strict,
        )
        self._session = Session(settings, on_missing)
        self._inbox = Inbox() if log else None
        self._charts = Charts(per_layer=False, heatmap_every=None)
        self._resumed_at: int | None = None
        self._step = 0
        self._global_step = 0
        self._ahead = 0
        self._in_step = False

    @property
    def tracer(self) -> Tracer | None:
        """The tracer of the training that runs, or that ran last."""
        return self._session.tracer

    @property
    def state_key(self) -> str:
        """Tells this callback's state from that of another one with another run folder."""
        return self._generate_state_key(run=str(self._session.settings.run))

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, and the step that a resumed training goes on from."""
        return {"run": str(self._session.settings.run), "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the step of the checkpoint."""
        self._resumed_at = int(state_dict["step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach.

        Raises:
            MoETraceError, ValueError, TypeError: A mistake of use.
        """
        resumed, self._resumed_at = self._resumed_at, None
        self._global_step = trainer.global_step
        self._step = trainer.global_step if resumed is None else resumed
        self._in_step = False
        self._session.open(pl_module, sinks=() if self._inbox is None else [self._inbox])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a step, unless one is open: a batch is no step under accumulation."""
        if not self._in_step:
            self._in_step = True
            self._session.do(lambda tracer: tracer.on_step_begin(self._step + 1))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Measure gradients: reduced, unscaled, not clipped. The first optimizer's of a batch."""
        self._session.do(lambda tracer: tracer.on_gradients())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """End the step where an optimizer has stepped; write what has arrived to the loggers."""
        self._session.do(lambda tracer: self._end(tracer, trainer))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Close the windows, so that they end where a resume begins."""
        self._session.do(lambda tracer: tracer.flush())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close; the loggers are still open and get the last windows."""
        self._session.close()
        self._session.do(lambda _: self._log(trainer))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close a training that failed or was interrupted."""
        self._session.close()
        self._session.do(lambda _: self._log(trainer))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close, whatever came before."""
        self._session.close()

    def _end(self, tracer: Tracer, trainer: Trainer) -> None:
        if trainer.global_step == self._global_step:
            return
        self._global_step = trainer.global_step
        self._in_step = False
        self._step += 1
        # Lightning's own rows of this batch get this number, one behind ours.
        row = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", self._step - 1)
        self._ahead = self._step - row
        tracer.on_step_end(self._step)
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        for snapshot in self._inbox or ():
            step = max(0, snapshot.last_step - self._ahead)
            for logger in trainer.loggers:
                logger.log_metrics(self._charts.scalars(snapshot), step=step)
