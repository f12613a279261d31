"""Where snapshots go besides the run folder.

A sink is anything with ``write(snapshot)`` and ``close()``; the `Sink` protocol says what it may
rely on. Pass sinks to ``attach(..., sinks=[...])``; a logger that you have already (the ``wandb``
module, a run, a ``SummaryWriter``) is taken for the sink that it stands for:
`moetrace.sinks.recognised`.

Names are resolved on first use, and a sink imports its tracker when it is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetrace.sinks.base import AlertSink, Sink
    from moetrace.sinks.callable import CallableSink
    from moetrace.sinks.console import ConsoleSink
    from moetrace.sinks.memory import MemorySink
    from moetrace.sinks.mlflow import MlflowSink
    from moetrace.sinks.prometheus import PrometheusSink
    from moetrace.sinks.tensorboard import TensorBoardSink
    from moetrace.sinks.trackio import TrackioSink
    from moetrace.sinks.wandb import WandbSink

_HOMES = {
    "AlertSink": "base",
    "CallableSink": "callable",
    "ConsoleSink": "console",
    "MemorySink": "memory",
    "MlflowSink": "mlflow",
    "PrometheusSink": "prometheus",
    "Sink": "base",
    "TensorBoardSink": "tensorboard",
    "TrackioSink": "trackio",
    "WandbSink": "wandb",
}

__all__ = [
    "AlertSink",
    "CallableSink",
    "ConsoleSink",
    "MemorySink",
    "MlflowSink",
    "PrometheusSink",
    "Sink",
    "TensorBoardSink",
    "TrackioSink",
    "WandbSink",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moetrace.sinks' has no attribute {name!r}")
    return getattr(import_module(f"moetrace.sinks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
