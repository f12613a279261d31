"""The way of snapshots into one sink: a thread and a bounded queue of its own.

A sink may be slow, hang or raise; neither the run folder nor another sink nor a step notices.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from moetrace.alerts import Alert
from moetrace.routing_stats import VECTORS
from moetrace.sinks.base import Sink
from moetrace.snapshot import Snapshot, merge

__all__ = ["SinkFeed"]

_log = logging.getLogger("moetrace")

_LONGEST_QUEUE = 64
_MOST_BYTES = 64 << 20
_MOST_FAILURES = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STALLED_SECONDS = 30.0


class SinkFeed:
    """Feeds one sink, in order, from one thread.

    When the sink is behind, the two oldest windows of one phase become one: counts add, so time
    resolution is lost and nothing else. At most 64 snapshots wait, and 64 MiB of them where phases
    let them be added. A sink that raises is tried again with the next snapshot; after ten failures
    in a row it gets one only after a pause of 1, 2, 4, ... 60 seconds, until it takes one. All of
    that is said once.

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
        self._queue: deque[_Queued] = deque()
        self._writing_since: float | None = None
        self._said: set[str] = set()
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

    @property
    def stalled(self) -> bool:
        """Whether the sink has not returned from a call for 30 s."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > _STALLED_SECONDS

    def offer(self, snapshot: Snapshot, alerts: Sequence[Alert] = ()) -> None:
        """Queue a snapshot and what was judged on it. Never blocks on the sink."""
        with self._wake:
            self._queue.append(_Queued(snapshot, tuple(alerts)))
            while self._too_long() and self._shorten():
                pass
            self._wake.notify()
        if self.stalled:
            self._say(
                "%s has not returned for %d s; training and the run folder go on, and its windows "
                "get wider",
                self.name,
                _STALLED_SECONDS,
            )

    def drain(self, deadline: float) -> bool:
        """Wait until everything queued was written, at most until ``deadline`` (monotonic)."""
        with self._wake:
            return self._wake.wait_for(
                lambda: not self._queue or self.broken, max(0.0, deadline - time.monotonic())
            )

    def finish(self) -> None:
        """Ask the thread to write what is queued, to close the sink and to end; does not wait."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def close(self, deadline: float) -> bool:
        """`finish`, and wait for it; False if that came too late.

        A sink that is being paused gets nothing more. Called by the sink itself it does not wait.
        """
        self.finish()
        if threading.current_thread() is self._thread:
            return True
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _too_long(self) -> bool:
        if len(self._queue) > _LONGEST_QUEUE:
            return True
        return sum(queued.size for queued in self._queue) > _MOST_BYTES

    def _shorten(self) -> bool:
        # The head may be in the sink's hands, so the search starts behind it. Phases take turns, so
        # the next window of the same phase need not be the next one in the queue.
        oldest: dict[str, int] = {}
        for index in range(1, len(self._queue)):
            later = self._queue[index]
            first = oldest.setdefault(later.snapshot.phase, index)
            if first != index:
                earlier = self._queue[first]
                self._queue[first] = _Queued(
                    merge([earlier.snapshot, later.snapshot]),
                    _newest((*earlier.alerts, *later.alerts)),
                )
                del self._queue[index]
                return True
        return False

    def _run(self) -> None:
        failures, pause = 0, _FIRST_PAUSE
        while (queued := self._next()) is not None:
            failures = failures + 1 if self._failed(queued) else 0
            with self._wake:
                self._queue.popleft()
                self.broken = failures >= _MOST_FAILURES
                self._wake.notify_all()
            if not self.broken:
                pause = _FIRST_PAUSE
                continue
            self._say(
                "%s failed %d times in a row; it gets a snapshot only now and then until it takes "
                "one, and the run folder has them all",
                self.name,
                failures,
            )
            with self._wake:
                if self._wake.wait_for(lambda: self._closing, pause):
                    break
            pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            self._sink.close()
        except BaseException as error:
            self._note(error, "close")

    def _failed(self, queued: "_Queued") -> bool:
        self._writing_since = time.monotonic()
        try:
            self._sink.write(queued.snapshot)
        except BaseException as error:  # SystemExit of a sink ends its write, not our thread
            self._note(error, "write")
            return True
        else:
            return False
        finally:
            self._tell(queued.alerts)
            self._writing_since = None

    def _tell(self, alerts: Sequence[Alert]) -> None:
        if self._alert is None:
            return
        for alert in alerts:
            try:
                self._alert(alert)
            except BaseException as error:
                self._note(error, "alert")

    def _next(self) -> "_Queued | None":
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait(1.0)
            return self._queue[0] if self._queue else None

    def _say(self, text: str, *values: object) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning(text, *values)

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


class _Queued:
    """A snapshot that waits, what was judged on it, and about how many bytes that is."""

    __slots__ = ("alerts", "size", "snapshot")

    def __init__(self, snapshot: Snapshot, alerts: tuple[Alert, ...]) -> None:
        self.snapshot, self.alerts = snapshot, alerts
        self.size: int = sum(
            getattr(stats, name).nbytes for stats in snapshot.routing for name in VECTORS
        )


def _newest(alerts: Sequence[Alert]) -> tuple[Alert, ...]:
    """The last alert of each condition: that bounds the memory of a sink that hangs."""
    return tuple({(a.kind, a.phase, a.layer): a for a in alerts}.values())
