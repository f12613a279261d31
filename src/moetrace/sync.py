"""Replays a run folder into a sink, after the fact: a tracker that was down, or one chosen later.

Nothing is remembered: the run folder is only read, and each call sends every window that counts, or
those after a step. A tracker that is sent the same step twice does with it what it does.
"""

import contextlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from moetrace.errors import SinkFailed
from moetrace.run import Run
from moetrace.sinks.base import Sink
from moetrace.sinks.recognised import recognised
from moetrace.snapshot import Snapshot

__all__ = ["Synced", "make_sink", "sync_run"]

GROUP = "moetrace.sinks"
"""Entry points that name a sink for the command line."""


@dataclass(frozen=True, slots=True)
class Synced:
    """What a replay has sent.

    Attributes:
        windows: Snapshots that the sink took.
        last_step: Last step of the last of them; None where there was none.
    """

    windows: int
    last_step: int | None


def make_sink(name: str) -> Sink:
    """The sink that a name stands for, made without arguments.

    Args:
        name: An entry point of the group ``moetrace.sinks`` such as ``wandb``, or
            ``module:factory`` of anything that can be called and gives a sink, or a logger that
            `moetrace.sinks.recognised` knows. Names come from whoever calls, never from a run.

    Raises:
        ValueError: There is none of that name; the message lists those that there are.
        ImportError: Its module or its tracker is not installed.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        return recognised(_factory(module, attribute)())
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        raise ValueError(
            f"found no sink {name!r}; there are {', '.join(sorted(known))}, or name your own as "
            "module:factory"
        )
    return recognised(known[name].load()())


def _factory(module: str, attribute: str) -> Callable[[], Any]:
    found = import_module(module)
    factory = getattr(found, attribute, None)
    if not callable(factory):
        raise ValueError(f"found no function or class {attribute!r} in the module {module!r}")
    made: Callable[[], Any] = factory
    return made


def sync_run(run: Run, sink: Sink, *, after: int = -1) -> Synced:
    """Send the windows of a run to a sink, in the order of their steps, and close the sink.

    All ranks are added, and each step is sent once, of its latest attempt. Memory holds one window
    per phase at a time.

    Args:
        run: The run.
        sink: Gets `write` per window and `close` at the end, on this thread.
        after: Send only windows whose last step is larger.

    Raises:
        SinkFailed: The sink raised.
    """
    windows, last_step = 0, None
    try:
        for snapshot in _in_order(run):
            if snapshot.last_step > after:
                sink.write(snapshot)
                windows, last_step = windows + 1, snapshot.last_step
        sink.close()
    except Exception as error:
        with contextlib.suppress(Exception):
            sink.close()
        told = f"{type(sink).__name__} failed after {windows} windows: {error!r}"
        again = f"; go on with --after {last_step}" if last_step is not None else "; try again"
        raise SinkFailed(told + again) from error
    return Synced(windows, last_step)


def _in_order(run: Run) -> Iterator[Snapshot]:
    phases = (run.windows(phase=phase) for phase in run.phases)
    return heapq.merge(*phases, key=lambda snapshot: (snapshot.last_step, snapshot.first_step))
