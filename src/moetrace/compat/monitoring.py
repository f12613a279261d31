"""The dashboard, console lines, alerts and log files that users of a MoE callback know.

One sink shows a window in all of these places, in one order: what may fail comes last.
"""

import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from moetrace.alerts import Alert, AlertRules
from moetrace.compat.auxiliary_loss import AuxiliaryLoss
from moetrace.compat.heatmap_files import HeatmapFiles
from moetrace.export.detailed_logs import detailed_log
from moetrace.sinks.base import Sink
from moetrace.sinks.console import ConsoleSink
from moetrace.sinks.recognised import recognised
from moetrace.snapshot import Snapshot

__all__ = ["MoEMonitoring", "MonitoringSink"]

SHOWN = ("moe/avg_expert_cv", "moe/avg_routing_entropy", "moe/total_unused_experts")
"""What the console shows of a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEMonitoring:
    """What a MoE callback is told.

    Attributes:
        log_every_n_steps: Optimizer steps per row; a row is all of its steps, not the last one.
        logger: The ``wandb`` module, a run of W&B, a ``SummaryWriter``, any sink, or None.
        log_to_console: Print the main figures of each window, and alerts.
        log_heatmap_every: Steps between the pictures of every layer's expert usage.
        alert_threshold_imbalance: Alert above this load of the busiest expert, over the mean.
        unused_expert_threshold: Alert from this share of unused experts on.
        entropy_threshold: Alert below this routing entropy, nats.
        save_detailed_logs: Write a JSON file per window, the pictures, and a run folder ``run``,
            into ``log_dir``.
        window_size: Accepted for old programs. Pictures show the last 256 windows.
        log_dir: Folder of the detailed logs.
    """

    log_every_n_steps: int = 100
    logger: Any = None
    log_to_console: bool = True
    log_heatmap_every: int = 1000
    alert_threshold_imbalance: float = 5.0
    unused_expert_threshold: float = 0.3
    entropy_threshold: float = 0.1
    save_detailed_logs: bool = False
    window_size: int = 1000
    log_dir: str | os.PathLike[str] = "./moe_logs"

    @property
    def run(self) -> Path | None:
        """Folder of the run, or None where nothing is written."""
        return Path(self.log_dir) / "run" if self.save_detailed_logs else None

    def rules(self) -> AlertRules:
        """Each window by itself, its plain figures against the thresholds."""
        return AlertRules(
            alert_threshold_imbalance=self.alert_threshold_imbalance,
            unused_expert_threshold=self.unused_expert_threshold,
            entropy_threshold=self.entropy_threshold,
            usage_threshold=None,
            persistence_threshold=None,
            collapse_threshold=None,
            dropped_threshold=None,
            frozen_windows=None,
            nonfinite=False,
            silent=False,
            above_floor=False,
            duration=1,
        )


class MonitoringSink:
    """Shows windows on the console, in the logger and in files, and counts alerts.

    Args:
        monitoring: What to show, and where.
        auxiliary: The losses that the model itself returns, or None.

    Raises:
        TypeError: The logger is none of those that are known.
    """

    def __init__(self, monitoring: MoEMonitoring, auxiliary: AuxiliaryLoss | None = None) -> None:
        self._monitoring = monitoring
        self._auxiliary = auxiliary
        self._console = _Console() if monitoring.log_to_console else None
        self._logger = _logger(monitoring)
        self._heatmaps = (
            HeatmapFiles(Path(monitoring.log_dir), monitoring.log_heatmap_every)
            if monitoring.save_detailed_logs
            else None
        )
        self._alerts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def summary(self, steps: int) -> dict[str, Any]:
        """``total_steps``, ``total_alerts``, and ``alert_types``: how many of each kind."""
        with self._lock:
            kinds = dict(self._alerts)
        return {
            "total_steps": steps,
            "total_alerts": sum(kinds.values()),
            "alert_types": kinds,
        }

    def say_summary(self, steps: int) -> None:
        """Print the summary, where the console is on."""
        if self._console is not None:
            self._console.say(self.summary(steps))

    def write(self, snapshot: Snapshot, /) -> None:
        """Show it; files and console before the logger, which is the one that may fail."""
        if snapshot.phase == "train":
            snapshot = _Shown.of(snapshot, self._more(snapshot))
            if self._console is not None and snapshot.rank == 0:
                self._console.write(snapshot)
            if self._heatmaps is not None and snapshot.rank == 0:
                _save(Path(self._monitoring.log_dir), snapshot)
                self._heatmaps.write(snapshot)
        if self._logger is not None:
            self._logger.write(snapshot)

    def alert(self, alert: Alert, /) -> None:
        """Count it and show it where it starts; the logger is also told where it is over."""
        if alert.state == "started":
            with self._lock:
                self._alerts[alert.kind] += 1
            if self._console is not None:
                self._console.alert(alert)
        tell = getattr(self._logger, "alert", None)
        if tell is not None:
            tell(alert)

    def close(self) -> None:
        """Close the logger's sink; a logger of the caller's stays open."""
        if self._logger is not None:
            self._logger.close()

    def _more(self, snapshot: Snapshot) -> dict[str, float]:
        """What the dashboard shows beside the metrics of the window itself."""
        more = {"moe/step": float(snapshot.last_step)}
        if self._auxiliary is not None:
            more.update(self._auxiliary.taken(snapshot.last_step))
        return more


@dataclass(frozen=True, slots=True, eq=False)
class _Shown(Snapshot):
    """A snapshot whose metrics also hold what only the dashboard knows."""

    more: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, snapshot: Snapshot, more: Mapping[str, float]) -> "_Shown":
        same = {item.name: getattr(snapshot, item.name) for item in fields(snapshot)}
        return cls(**same, more=more)

    def metrics(self, *, per_layer: bool = False) -> dict[str, float]:
        return {**Snapshot.metrics(self, per_layer=per_layer), **self.more}


class _Console(ConsoleSink):
    """The main figures in one line, four decimals; alerts only where they start."""

    def write(self, snapshot: Snapshot, /) -> None:
        found = snapshot.metrics()
        shown = [f"{key}={found[key]:.4f}" for key in SHOWN if key in found]
        self._print(f"MoE step {snapshot.last_step}: {', '.join(shown)}")

    def say(self, summary: Mapping[str, Any]) -> None:
        """The summary of a training in one line."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in summary["alert_types"].items())
        of_which = f" ({kinds})" if kinds else ""
        steps, alerts = summary["total_steps"], summary["total_alerts"]
        self._print(f"MoE summary: {steps} steps, {alerts} alerts{of_which}")


def _logger(monitoring: MoEMonitoring) -> Sink | None:
    if monitoring.logger is None:
        return None
    return recognised(monitoring.logger, per_layer=True, heatmap_every=monitoring.log_heatmap_every)


def _save(folder: Path, snapshot: Snapshot) -> None:
    """``detailed_log_step_{N}.json``: always valid JSON, null where a metric is undefined."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"detailed_log_step_{snapshot.last_step}.json"
    text = json.dumps(detailed_log(snapshot), allow_nan=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
