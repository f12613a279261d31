"""moetrace in a training loop of accelerate."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import nn

from moetrace.alerts import AlertRules
from moetrace.readers import Reader
from moetrace.settings import USUAL_RULES, Settings
from moetrace.sinks.charts import Charts
from moetrace.topology import Mesh, Topology
from moetrace.tracer import Tracer
from moetrace_adapters.clipping import measured_when_unscaled
from moetrace_adapters.session import POINTER, Inbox, OnMissing, Session

__all__ = ["AcceleratedTrace"]


class AcceleratedTrace:
    """Traces a model in a loop of accelerate; put `accumulate` where the accelerator's was.

    ```python
    with AcceleratedTrace(accelerator, model, "runs/exp1") as trace:
        for batch in loader:
            with trace.accumulate(model):
                accelerator.backward(model(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
    ```

    Before or after ``accelerator.prepare`` makes no difference. A step ends with the micro-batch
    after which the accelerator synchronises gradients. Each window goes to the accelerator's
    trackers. ``accelerator.save_state`` leaves a small file ``moetrace.json`` beside the state,
    from which ``accelerator.load_state`` goes on with the right step.

    Args:
        accelerator: The accelerator of the loop.
        model: The model that is trained, prepared or not.
        run: As in `moetrace.attach`, like all that follow but the last two.
        every: Optimizer steps per window.
        sample: Count only the first of every so many steps.
        sinks: Where else snapshots go: sinks, and names such as ``"console"``.
        probes: What to measure beside routing.
        readers: Your own readers.
        layers: Glob or globs over site names.
        topology: Where this process stands among those of the run.
        reduce: ``"live"`` shows the sinks of every rank the windows of all ranks together.
        alerts: What is worth an alert, None for no alerts.
        strict: Raise in the training what would only be logged; for tests and CI.
        log: Write every window to the accelerator's trackers.
        on_missing: ``"raise"`` `NoRouterFound` on a model without a router, or ``"warn"`` and train
            untraced.

    Raises:
        MoETraceError, ValueError, TypeError: A mistake of use, as in `moetrace.attach`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
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
        self._accelerator = accelerator
        self._session = Session(settings, on_missing)
        self._inbox = Inbox() if log else None
        self._charts = Charts(per_layer=False, heatmap_every=None)
        self._step = 0
        self._in_step = False
        self._session.open(model, sinks=() if self._inbox is None else [self._inbox])
        self._handles = [
            accelerator.register_save_state_pre_hook(self._saves),
            accelerator.register_load_state_pre_hook(self._loads),
        ]
        self._uncover = measured_when_unscaled(
            accelerator, lambda: self._session.do(lambda tracer: tracer.on_gradients())
        )

    @property
    def tracer(self) -> Tracer | None:
        """The tracer; None on a model without a router, where that was let pass."""
        return self._session.tracer

    @contextmanager
    def accumulate(self, *models: nn.Module) -> Iterator[None]:
        """In place of ``accelerator.accumulate``: one micro-batch, and the step where it ends.

        A micro-batch that raises gives its whole step up, with its earlier micro-batches: phase
        ``aborted``. A step that the gradient scaler skips is none: phase ``skipped``.
        """
        with self._accelerator.accumulate(*models):
            if not self._in_step:
                self._session.do(lambda tracer: tracer.on_step_begin(self._step + 1))
            self._in_step = False
            yield
            self._in_step = not self._accelerator.sync_gradients
            if not self._in_step:
                skipped = self._accelerator.optimizer_step_was_skipped
                self._step += not skipped
                self._session.do(lambda tracer: tracer.on_step_end(self._step, skipped=skipped))
        self._session.do(lambda _: self._log())

    def close(self) -> None:
        """Close the tracer, and write the last windows to the trackers. Safe to call twice."""
        self._session.close()
        self._session.do(lambda _: self._log())
        for handle in self._handles:
            handle.remove()
        self._uncover()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _log(self) -> None:
        for snapshot in self._inbox or ():
            row = self._charts.scalars(snapshot)
            for tracker in self._accelerator.trackers:
                if tracker.name == "wandb":
                    # With a step of ours, W&B drops rows; it travels in the row instead.
                    tracker.log({**row, "moe/step": snapshot.last_step})
                else:
                    tracker.log(row, step=snapshot.last_step)

    def _saves(self, models: Any, weights: Any, folder: str) -> None:
        first = self._accelerator.is_main_process
        self._session.point(Path(folder) if first else None, step=self._step)

    def _loads(self, models: Any, folder: str) -> None:
        self._session.do(lambda tracer: self._go_on(tracer, Path(folder) / POINTER))

    def _go_on(self, tracer: Tracer, pointer: Path) -> None:
        if pointer.is_file():
            self._step = int(json.loads(pointer.read_text(encoding="utf-8"))["step"])
            self._in_step = False
