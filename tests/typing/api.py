"""Code as a user writes it: type-checked by mypy and pyright, never run."""

from collections.abc import Mapping
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import moetrace
from moetrace.sinks import CallableSink, ConsoleSink, MemorySink


class WorstLayer:
    """A sink is any class with these two methods."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def write(self, snapshot: moetrace.Snapshot) -> None:
        self.seen.append(snapshot.metrics()["moe/worst_max_vio"])

    def close(self) -> None:
        self.seen.clear()


class MyReader:
    """A reader is any class with these two methods."""

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear)

    def read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> moetrace.Routing | None:
        weights, ids = output.topk(2)
        return moetrace.Routing(ids, output, weights)


def train(model: nn.Module, loader: list[dict[str, Tensor]]) -> None:
    memory = MemorySink()
    sinks: list[moetrace.Sink] = [memory, WorstLayer(), ConsoleSink(), CallableSink(print)]
    with moetrace.attach(
        model, "runs/exp1", every=100, sinks=sinks, readers=[MyReader()]
    ) as tracer:
        assert_type(tracer, moetrace.Tracer)
        for batch in loader:
            tracer.on_step_begin()
            with tracer.tokens(mask=batch["mask"]):
                model(**batch)
            with tracer.phase("rollout"):
                model(**batch)
            tracer.on_step_end()
        tracer.on_step_end(step=7)
        assert_type(tracer.step, int)
        assert_type(tracer.latest, moetrace.Snapshot | None)
        assert_type(tracer.flush(), moetrace.Snapshot | None)
        assert_type(tracer.sites, tuple[moetrace.Site, ...])
    tracer.close()
    assert_type(memory.snapshots, list[moetrace.Snapshot])
    moetrace.attach(model, layers=["*.mlp"], strict=True).close()


def wrong(model: nn.Module) -> None:
    moetrace.attach(model, every="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    moetrace.attach(model, None, 10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def look(model: nn.Module) -> None:
    for site in moetrace.discover(model):
        assert_type(site, moetrace.Site)
        assert_type(site.name, str)


def read() -> None:
    run = moetrace.open_run("runs/exp1")
    assert_type(run, moetrace.Run)
    assert_type(run.counts(), NDArray[np.int64])
    assert_type(run.metric("load_cv", phase="eval"), NDArray[np.float64])
    for snapshot in run.snapshots(phase="train", rank=0):
        assert_type(snapshot, moetrace.Snapshot)
        assert_type(snapshot["model.layers.0.mlp"], moetrace.RoutingStats)
        for stats in snapshot:
            assert_type(stats.metrics(), dict[str, float | None])
            assert_type(stats.tokens_per_expert, NDArray[np.int64])
    torch.tensor(run.counts())


def guarded(model: nn.Module) -> None:
    try:
        moetrace.attach(model)
    except moetrace.NoRouterFound as error:
        assert_type(error, moetrace.NoRouterFound)
    except moetrace.MoETraceError:
        raise
