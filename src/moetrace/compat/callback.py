"""The MoE callback for a training loop of one's own, under the name that its users know."""

import os
from typing import Any

from torch import nn

from moetrace.attachment import attach
from moetrace.compat.auxiliary_loss import AuxiliaryLoss
from moetrace.compat.monitoring import MoEMonitoring, MonitoringSink
from moetrace.tracer import Tracer

__all__ = ["MoECallback", "create_moe_callback_for_pytorch"]


def create_moe_callback_for_pytorch(
    model: nn.Module,
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
) -> "MoECallback":
    """A callback for a loop of one's own; it is on the model from this call on.

    Args:
        model: The model that is trained.
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

    Raises:
        NoRouterFound: Nothing in the model could be read as a router. Lists the near misses.
        ValueError, TypeError: An argument is not what it has to be.
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
    return MoECallback(model, monitoring)


class MoECallback:
    """Traces one model; made by `create_moe_callback_for_pytorch`.

    Attributes:
        monitoring: What it was told.
        tracer: The tracer behind it.
    """

    def __init__(self, model: nn.Module, monitoring: MoEMonitoring) -> None:
        self.monitoring = monitoring
        self._auxiliary = AuxiliaryLoss()
        self._sink = MonitoringSink(monitoring, self._auxiliary)
        self.tracer: Tracer = attach(
            model,
            monitoring.run,
            every=monitoring.log_every_n_steps,
            sinks=[self._sink],
            alerts=monitoring.rules(),
        )
        self._handle = self._auxiliary.watch(model)

    def on_step_begin(self) -> None:
        """Say that a step begins, before its first forward."""
        self.tracer.on_step_begin()

    def on_step_end(self) -> None:
        """Say that a step has finished, after ``optimizer.step()``."""
        if (self.tracer.step + 1) % self.monitoring.log_every_n_steps == 0:
            self._auxiliary.close_window(self.tracer.step + 1)
        self.tracer.on_step_end()

    def cleanup(self) -> None:
        """Write the last window, take everything off the model, end the threads.

        Safe to call twice.
        """
        self._auxiliary.close_window(self.tracer.step)
        self._handle.remove()
        self.tracer.close()

    def get_summary(self) -> dict[str, Any]:
        """``total_steps``, ``total_alerts``, and ``alert_types``: how many of each kind."""
        return self._sink.summary(self.tracer.step)
