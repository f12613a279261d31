"""A logger that somebody has already, taken for the sink that it stands for.

By the name of its module, and else by what it can do. Nothing is imported to find out: whoever
passes a W&B run has imported wandb.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

from moetrace.sinks.base import Sink
from moetrace.sinks.mlflow import MlflowSink
from moetrace.sinks.tensorboard import TensorBoardSink
from moetrace.sinks.trackio import TrackioSink
from moetrace.sinks.wandb import WandbSink

__all__ = ["recognised"]


def recognised(
    logger: object,
    /,
    *,
    per_layer: bool = False,
    heatmap_every: int | None = 1000,
    alias: Mapping[str, str] | None = None,
) -> Sink:
    """The sink for a logger object; a sink is returned as it is.

    Taken are: anything with ``write`` and ``close``; the ``wandb``, ``mlflow`` and ``trackio``
    modules, for their open run; a run of one of them; a TensorBoard ``SummaryWriter``, or anything
    with ``add_scalar``; and, as W&B, anything else with ``log``.

    Args:
        logger: The object.
        per_layer: Of the sink that is made.
        heatmap_every: Of the sink that is made.
        alias: Of the sink that is made.

    Raises:
        TypeError: It is none of these.
        ValueError: It is a module that needs an open run and has none, or a sink, whose keys an
            alias cannot rename any more.
    """
    home = _home(logger)
    options: dict[str, Any] = {
        "per_layer": per_layer,
        "heatmap_every": heatmap_every,
        "alias": alias,
    }
    if home == "wandb" and isinstance(logger, ModuleType):
        return WandbSink(logger, **options)
    if home == "mlflow":
        return MlflowSink(logger, **options)
    if home == "trackio":
        return TrackioSink(logger, **options)
    if home != "wandb" and _has(logger, "write", "close"):
        if alias:
            raise ValueError(
                f"found alias= beside {type(logger).__name__}, which is a sink already; give the "
                f"alias to the sink: {type(logger).__name__}(..., alias=...)"
            )
        return cast(Sink, logger)
    if _has(logger, "add_scalar"):
        return TensorBoardSink(logger, **options)
    if _has(logger, "log"):
        return WandbSink(logger, **options)
    hint = "wrap the function in CallableSink" if callable(logger) else "give it both"
    raise TypeError(
        f"found {type(logger).__name__} as a sink; a sink has write(snapshot) and close(): {hint}. "
        "The wandb, mlflow or trackio module, a run of theirs and a SummaryWriter are taken as well"
    )


def _home(logger: object) -> str:
    """The package that an object comes from."""
    name = logger.__name__ if isinstance(logger, ModuleType) else type(logger).__module__
    return name.partition(".")[0]


def _has(logger: object, *names: str) -> bool:
    return all(callable(getattr(logger, name, None)) for name in names)
