# pyright: strict
"""What a sink is: whatever takes snapshots."""

from typing import Protocol

from moetrace.alerts import Alert
from moetrace.snapshot import Snapshot

__all__ = ["AlertSink", "Sink"]


class Sink(Protocol):
    """Takes snapshots, one per closed window.

    Any object with these two methods is one; nothing has to be inherited or registered. Both are
    called from one thread that belongs to this sink alone, never from the training thread, so a
    sink may be slow. A tracker's "current run" is usually bound to the thread that started it:
    keep the run itself, not the module. What a sink raises is logged once and stays away from
    training, run folder and other sinks. A sink that also has ``alert(alert)`` is an `AlertSink`.

    >>> class Steps:
    ...     def __init__(self) -> None:
    ...         self.seen: list[int] = []
    ...
    ...     def write(self, snapshot: Snapshot, /) -> None:
    ...         self.seen.append(snapshot.last_step)
    ...
    ...     def close(self) -> None:
    ...         print(f"saw windows up to step {max(self.seen)}")
    >>> sink: Sink = Steps()
    >>> for last_step in (10, 20):
    ...     sink.write(Snapshot("run", 0, 0, 0, "train", 1, last_step, 0.0, ()))
    >>> sink.close()
    saw windows up to step 20
    """

    def write(self, snapshot: Snapshot, /) -> None:
        """Take one snapshot. They come in the order in which their windows closed.

        A sink that falls behind gets wider windows: neighbours of one phase are added up.
        """
        ...

    def close(self) -> None:
        """Write what is still held and let go of everything. Called once, after the last write."""
        ...


class AlertSink(Sink, Protocol):
    """A sink that is told what begins to go wrong, and when it is over."""

    def alert(self, alert: Alert, /) -> None:
        """Take one alert. It comes after the snapshot that it was judged on.

        A sink that falls behind gets the newest alert of each condition.
        """
        ...
