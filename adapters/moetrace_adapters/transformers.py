"""moetrace in the Trainer of transformers and the trainers built on it, such as TRL's."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from moetrace.alerts import AlertRules
from moetrace.compat.auxiliary_loss import AuxiliaryLoss
from moetrace.compat.monitoring import MoEMonitoring, MonitoringSink
from moetrace.readers import Reader
from moetrace.settings import USUAL_RULES, Settings
from moetrace.topology import Mesh, Topology
from moetrace.tracer import Tracer
from moetrace_adapters.checkpoint import checkpoint_of
from moetrace_adapters.clipping import measured_when_unscaled
from moetrace_adapters.router_weights import RouterWeightTrackingCallback
from moetrace_adapters.session import OnMissing, Session

__all__ = [
    "MoEMonitoringCallback",
    "MoETraceCallback",
    "RouterWeightTrackingCallback",
    "create_moe_callback_for_transformers",
]


class MoETraceCallback(TrainerCallback):
    """Traces what a Trainer trains: ``Trainer(..., callbacks=[MoETraceCallback("runs/exp1")])``.

    It attaches when training begins, on every rank, and closes with the Trainer's last log, while
    the trackers of its integrations are still open. Windows are counted in optimizer steps
    (``global_step``), however many micro-batches those have; evaluation is phase ``eval``. A
    training that resumes goes on in the same run folder as a new attempt, and each checkpoint holds
    a small file ``moetrace.json`` that says where the run is. Each trial of a hyper-parameter
    search gets a folder of its own inside ``run``. Evaluation outside of ``train()`` is not traced:
    put `moetrace.attach` around it.

    Args:
        run: As in `moetrace.attach`, like all but the last.
        every: Optimizer steps per window.
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
        self._uncover: Callable[[], None] = lambda: None
        self._trial: tuple[Any, Any] | None = None
        self._trials = 0

    @property
    def tracer(self) -> Tracer | None:
        """The tracer of the training that runs, or that ran last."""
        return self._session.tracer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach; also where a training begins again after a failed one, or with the next trial.

        Raises:
            MoETraceError, ValueError, TypeError: A mistake of use.
        """
        if model is not None:
            self._session.open(model, run=self._run(state))
        # Evaluation may come before the first step, and a resumed training is not at step 0.
        self._session.do(lambda tracer: tracer.on_step_begin(state.global_step + 1))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin an optimizer step; its micro-batches follow."""
        self._session.do(lambda tracer: tracer.on_step_begin(state.global_step + 1))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure gradients as the optimizer gets them, where `before_clipping` has not."""
        clipped = args.max_grad_norm > 0
        self._session.do(lambda tracer: tracer.on_gradients(clipped=clipped))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """End it; ``global_step`` counts it already, also where the gradient scaler skipped it."""
        skipped = bool(getattr(optimizer, "step_was_skipped", False))
        self._session.do(lambda tracer: tracer.on_step_end(state.global_step, skipped=skipped))

    def before_clipping(self, trainer: Trainer) -> None:
        """Measure this trainer's gradients before it clips them; callbacks only see them after.

        Args:
            trainer: The trainer that this callback was given to, before it trains. With
                ``max_grad_norm=0`` nothing is clipped and this is not needed.
        """
        self._uncover()
        self._uncover = measured_when_unscaled(
            trainer.accelerator, lambda: self._session.do(lambda tracer: tracer.on_gradients())
        )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the windows, so that they end where a resume begins, and leave the pointer."""
        writes = state.is_world_process_zero
        folder = self._session.do(lambda _: checkpoint_of(args, state)) if writes else None
        self._session.point(folder, step=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Close with the last log of a training: at `on_train_end` the trackers are gone."""
        if "train_runtime" in (logs or {}):
            self._session.close(last=not state.is_hyper_param_search)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close where no last log came, as for a pruned trial."""
        self._session.close(last=not state.is_hyper_param_search)
        self._trial = None

    def _run(self, state: TrainerState) -> Path | None:
        run = self._session.settings.run
        if run is None or not state.is_hyper_param_search:
            return None
        trial = (state.trial_name, state.trial_params)
        if trial != self._trial:  # the same again is a retry with another batch size
            self._trial = trial
            self._trials += 1
        return Path(run) / (state.trial_name or f"trial-{self._trials - 1}")


def create_moe_callback_for_transformers(
    log_every_n_steps: int = 100,
    logger: Any = None,
    log_to_console: bool = True,
    log_heatmap_every: int = 1000,
    alert_threshold_imbalance: float = 5.0,
    unused_expert_threshold: float = 0.3,
    entropy_threshold: float = 0.1,
    save_detailed_logs: bool = False,
    window_size: int = 1000,
    log_dir: str | os.PathLike[str] = "./moe_logs",
) -> "MoEMonitoringCallback":
    """A callback under the name and the parameters that users of a MoE callback know.

    Args:
        log_every_n_steps: As in `moetrace.compat.MoEMonitoring`, like all that follow.
        logger: The logger.
        log_to_console: Print figures and alerts.
        log_heatmap_every: Steps between pictures.
        alert_threshold_imbalance: Threshold of the imbalance alert.
        unused_expert_threshold: Threshold of the alert for unused experts.
        entropy_threshold: Threshold of the entropy alert.
        save_detailed_logs: Write files into ``log_dir``.
        window_size: Accepted for old programs.
        log_dir: Folder of the files.
    """
    monitoring = MoEMonitoring(
        log_every_n_steps=log_every_n_steps,
        logger=logger,
        log_to_console=log_to_console,
        log_heatmap_every=log_heatmap_every,
        alert_threshold_imbalance=alert_threshold_imbalance,
        unused_expert_threshold=unused_expert_threshold,
        entropy_threshold=entropy_threshold,
        save_detailed_logs=save_detailed_logs,
        window_size=window_size,
        log_dir=log_dir,
    )
    return MoEMonitoringCallback(monitoring)


class MoEMonitoringCallback(MoETraceCallback):
    """Made by `create_moe_callback_for_transformers`.

    Attributes:
        monitoring: What it was told.
    """

    def __init__(self, monitoring: MoEMonitoring) -> None:
        self.monitoring = monitoring
        self._auxiliary = AuxiliaryLoss()
        self._shown = MonitoringSink(monitoring, self._auxiliary)
        self._handle: RemovableHandle | None = None
        super().__init__(
            monitoring.run,
            every=monitoring.log_every_n_steps,
            sinks=[self._shown],
            alerts=monitoring.rules(),
        )

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach, and look for the loss that the model itself returns."""
        super().on_train_begin(args, state, control, model, **kwargs)
        self._look_away()
        if model is not None:
            self._handle = self._auxiliary.watch(model)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """End the step."""
        if state.global_step % self.monitoring.log_every_n_steps == 0:
            self._session.do(lambda _: self._auxiliary.close_window(state.global_step))
        super().on_step_end(args, state, control, optimizer, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Close with the last log of a training."""
        if "train_runtime" in (logs or {}):
            self._session.do(lambda _: self._auxiliary.close_window(state.global_step))
            self._look_away()
        super().on_log(args, state, control, logs, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close where no last log came, and print the summary."""
        self._look_away()
        super().on_train_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self._session.do(lambda tracer: self._shown.say_summary(tracer.step))

    def get_summary(self) -> dict[str, Any]:
        """``total_steps``, ``total_alerts``, and ``alert_types``: how many of each kind."""
        return self._shown.summary(0 if self.tracer is None else self.tracer.step)

    def _look_away(self) -> None:
        if self._handle is not None:
            self._handle.remove()
