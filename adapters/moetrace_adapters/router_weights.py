"""The weights of routers, recorded by the Trainer of transformers."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moetrace.compat.router_weights import Targets
from moetrace.compat.weight_files import SnapshotFormat
from moetrace.compat.weight_tracker import RouterWeightTracker
from moetrace.sinks.wandb import WandbSink
from moetrace.snapshot import Snapshot
from moetrace_adapters.checkpoint import checkpoint_of

__all__ = ["RouterWeightTrackingCallback"]

_log = logging.getLogger("moetrace")

_SUMMARY = "router_weight_summary.json"


class RouterWeightTrackingCallback(TrainerCallback):
    """Records router weights: ``trainer.add_callback(RouterWeightTrackingCallback("logs"))``.

    Every ``log_every_n_steps`` optimizer steps, counted as ``global_step``; each checkpoint gets a
    summary of what was recorded until then. Records of every rank go into the run folder ``run`` in
    ``save_dir``, files for people are written by rank 0. Whatever of ours fails once training has
    begun is said once in the log and stays here.

    Args:
        save_dir: Folder of the records.
        log_every_n_steps: Optimizer steps between records; few of them cost much disk.
        save_full_weights: Also write the weights themselves with each record.
        max_history: Records that are kept in memory.
        snapshot_format: ``"safetensors"`` or ``"pt"``.
        targets: Which modules to follow, see `moetrace.compat.extract_router_weights`.
        logger: Where curves go, anything that `moetrace.attach` takes as a sink; None for the run
            of W&B that is open, if any.

    Attributes:
        tracker: What records.

    Raises:
        ValueError: An argument is not what it has to be.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] = "./router_weight_logs",
        log_every_n_steps: int = 100,
        save_full_weights: bool = False,
        max_history: int = 1000,
        *,
        snapshot_format: SnapshotFormat = "safetensors",
        targets: Targets | None = None,
        logger: Any = None,
    ) -> None:
        self.tracker = RouterWeightTracker(
            save_dir,
            log_every_n_steps,
            save_full_weights,
            max_history,
            snapshot_format,
            targets=targets,
            logger=_OpenWandbRun() if logger is None else logger,
        )
        self._failed = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Find the routers.

        Raises:
            NoRouterFound: There is none, or none that the targets name. Lists candidates.
            RunFolderError: ``save_dir`` cannot be written.
        """
        self.tracker.close()  # of a training that was cut off
        if model is not None:
            self.tracker.watch(model)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Record the weights after the optimizer's step, where it is due."""
        step = state.global_step
        if model is not None and step % self.tracker.save_every_n_steps == 0:
            self._kept_in(lambda: self.tracker.track_step(model, step=step, global_step=step))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the summary into the checkpoint."""
        if state.is_world_process_zero:
            self._kept_in(lambda: self._summarise(checkpoint_of(args, state)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the last summary, and let go of the model."""
        if state.is_world_process_zero:
            self._kept_in(lambda: self._summarise(self.tracker.save_dir))
        self._kept_in(self.tracker.close)

    def _summarise(self, folder: os.PathLike[str] | None) -> None:
        if folder is not None:
            self.tracker.save_summary(os.path.join(os.path.abspath(folder), _SUMMARY))

    def _kept_in(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            if not self._failed:
                self._failed = True
                _log.warning(
                    "router weights are not recorded and training goes on: %s: %s",
                    type(error).__name__,
                    error,
                )


class _OpenWandbRun:
    """A sink for the run of W&B that is open when something is to be shown, if there is one."""

    def __init__(self) -> None:
        self._run: Any = None
        self._sink: WandbSink | None = None

    def write(self, snapshot: Snapshot, /) -> None:
        run = getattr(sys.modules.get("wandb"), "run", None)
        if run is not self._run or self._sink is None:
            # The Trainer's own callback has defined the axis of all keys.
            self._run = run
            self._sink = (
                None
                if run is None
                else WandbSink(run, per_layer=True, heatmap_every=None, define=False)
            )
        if self._sink is not None:
            self._sink.write(snapshot)

    def close(self) -> None:
        """Do nothing: the run is not ours."""
