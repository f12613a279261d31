"""Snapshots kept in a list."""

from moetrace.alerts import Alert
from moetrace.snapshot import Snapshot

__all__ = ["MemorySink"]


class MemorySink:
    """Keeps every snapshot in `snapshots`: for notebooks, tests and short runs.

    Nothing is ever thrown away. One layer of one window takes ``24 E`` bytes and about 1 kB, so
    that 1,000 windows of 48 layers with 128 experts are some 200 MB: long runs belong into a run
    folder.

    Attributes:
        snapshots: In the order in which their windows closed. They stay after `close`.
        alerts: In the order in which they were said.

    >>> sink = MemorySink()
    >>> sink.write(Snapshot("run", 0, 0, 0, "train", 1, 10, 0.0, ()))
    >>> [snapshot.last_step for snapshot in sink.snapshots]
    [10]
    """

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.alerts: list[Alert] = []

    def write(self, snapshot: Snapshot, /) -> None:
        """Keep it."""
        self.snapshots.append(snapshot)

    def alert(self, alert: Alert, /) -> None:
        """Keep it."""
        self.alerts.append(alert)

    def close(self) -> None:
        """Do nothing: the snapshots stay."""
