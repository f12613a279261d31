"""The way of snapshots into one sink: a thread and a bounded queue of its own.

A sink may be slow, hang or raise; neither the run folder nor another sink nor a step notices.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from moetrace.alerts import Alert
from moetrace.sinks.base import Sink
from moetrace.snapshot import Snapshot, merge

__all__ = ["SinkFeed"]

_log = logging.getLogger("moetrace")

_LONGEST_QUEUE = 64
_MOST_FAILURES = 10


class SinkFeed:
    """Feeds one sink, in order, from one thread.

    When the sink is behind, the two oldest windows of one phase become one: counts add, so time
    resolution is lost and nothing else. A sink that raises is tried again with the
    next snapshot and broken off after ten failures in a row; both are said once.

    Args:
        sink: Anything with ``write`` and ``close``.
    """

    def __init__(self, sink: Sink) -> None:
        self.name = type(sink).__name__
        self.first_error: Exception | None = None
        self.broken = False
        self._sink = sink
        alert = getattr(sink, "alert", None)
        self._alert: Callable[[Alert], object] | None = alert if callable(alert) else None
        self._queue: deque[tuple[Snapshot, tuple[Alert, ...]]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(
            target=self._run, name=f"moetrace-sink-{self.name}", daemon=True
        )
        self._thread.start()

    @property
    def takes_alerts(self) -> bool:
        """Whether the sink wants to be told of alerts, and still can be."""
        return self._alert is not None and not self.broken

    def offer(self, snapshot: Snapshot, alerts: Sequence[Alert] = ()) -> None:
        """Queue a snapshot and what was judged on it. Never blocks on the sink."""
        if self.broken:
            return
        with self._wake:
            if len(self._queue) >= _LONGEST_QUEUE:
                self._shorten()
            self._queue.append((snapshot, tuple(alerts)))
            self._wake.notify()

    def drain(self, deadline: float) -> bool:
        """Wait until everything queued was written, at most until ``deadline`` (monotonic)."""
        with self._wake:
            return self._wake.wait_for(
                lambda: not self._queue or self.broken, max(0.0, deadline - time.monotonic())
            )

    def close(self, deadline: float) -> bool:
        """Write what is queued, close the sink, end the thread; False if that came too late."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _shorten(self) -> None:
        # The head may be in the sink's hands, so the search starts behind it. Phases take turns, so
        # the next window of the same phase need not be the next one in the queue.
        oldest: dict[str, int] = {}
        for index in range(1, len(self._queue)):
            snapshot, alerts = self._queue[index]
            first = oldest.setdefault(snapshot.phase, index)
            if first != index:
                earlier, said = self._queue[first]
                self._queue[first] = merge([earlier, snapshot]), _newest((*said, *alerts))
                del self._queue[index]
                return

    def _run(self) -> None:
        failures = 0
        while (item := self._next()) is not None:
            try:
                self._sink.write(item[0])
                failures = 0
            except BaseException as error:  # SystemExit of a sink ends its write, not our thread
                failures += 1
                self._note(error, "write")
            self._tell(item[1])
            with self._wake:
                self._queue.popleft()
                self.broken = failures >= _MOST_FAILURES
                self._wake.notify_all()
            if self.broken:
                _log.warning(
                    "%s failed %d times in a row and gets no more snapshots; they are all in the "
                    "run folder",
                    self.name,
                    failures,
                )
                break
        try:
            self._sink.close()
        except BaseException as error:
            self._note(error, "close")

    def _tell(self, alerts: Sequence[Alert]) -> None:
        if self._alert is None:
            return
        for alert in alerts:
            try:
                self._alert(alert)
            except BaseException as error:
                self._note(error, "alert")

    def _next(self) -> tuple[Snapshot, tuple[Alert, ...]] | None:
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait(1.0)
            return self._queue[0] if self._queue else None

    def _note(self, error: BaseException, act: str) -> None:
        if self.first_error is None:
            self.first_error = error if isinstance(error, Exception) else RuntimeError(repr(error))
            _log.warning(
                "%s raised in %s: %r; training and the run folder go on, and the sink is tried "
                "again with the next snapshot",
                self.name,
                act,
                error,
            )


def _newest(alerts: Sequence[Alert]) -> tuple[Alert, ...]:
    """The last alert of each condition: that bounds the memory of a sink that hangs."""
    return tuple({(a.kind, a.phase, a.layer): a for a in alerts}.values())
