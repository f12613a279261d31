"""The background thread: makes snapshots of closed windows, writes and distributes them.

The run folder comes first and alone decides what is acknowledged; sinks are fed after it. When
writing fails the snapshot is kept and the next window of its phase is added to it: windows get
wider, nothing is lost.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from moetrace.alerts import Alert, AlertJudge
from moetrace.closed_window import ClosedWindow
from moetrace.feed import SinkFeed
from moetrace.layout import AccumulatorLayout
from moetrace.metrics import EverUsed
from moetrace.printable import printable
from moetrace.probe_stats import joined
from moetrace.probes import RECEIPTS
from moetrace.readers import Site
from moetrace.reduction import LiveReduction, Offer
from moetrace.silence import Silence
from moetrace.sinks.base import Sink
from moetrace.snapshot import Snapshot, merge, with_never_used
from moetrace.withholding import Withholding

__all__ = ["Log", "Writer"]

_log = logging.getLogger("moetrace")

_LONGEST_QUEUE = 32
_MOST_BYTES = 64 << 20
_MOST_LIVES = 4
_FOR_SINKS = 2.0
"""Seconds before the end of `Writer.close` at which it waits for no other rank any more."""
_MOST_PHASES = 8  # whose newest snapshot is kept: a user may name one phase a step
_MOST_ALERT_LINES = 5


class Log(Protocol):
    """Where snapshots become durable: a segment of the run folder."""

    @property
    def durability(self) -> str:
        """``"synced"``, or ``"degraded"`` once the disk has failed to keep what it took."""
        ...

    def append(self, snapshot: Snapshot) -> None:
        """Write it; returning means that it is acknowledged."""
        ...

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write something that happened."""
        ...

    def close(self) -> None:
        """Write what is still buffered and close."""
        ...


class Writer:
    """One thread between the training and everything slow.

    ``newest`` holds the last snapshot of each of the last eight phases, for a diagnosis.

    Args:
        sites: The routers, in the order of the accumulators.
        recorded: Positions of the routers that snapshots show (``layers=`` of attach).
        identity: ``run_id``, ``rank`` and ``attempt`` of every snapshot.
        log: The segment of the run folder, or None to keep nothing on disk.
        sinks: Each gets a thread and a queue of its own.
        alerts: Judges every snapshot that is in the log; None judges none.
        live: What this rank offers to a live reduction over all ranks, which then stands between
            the log and the sinks; None gives the sinks this rank's own windows.
        earlier: The events of this rank's earlier attempts, asked for once, on this thread.
        along: Bytes of a window beside the sums of the routers.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        recorded: Sequence[int],
        identity: Mapping[str, Any],
        log: Log | None,
        sinks: Sequence[Sink],
        alerts: AlertJudge | None = None,
        live: Offer | None = None,
        earlier: Callable[[], Iterable[Mapping[str, Any]]] = tuple,
        along: int = 0,
    ) -> None:
        self.latest: Snapshot | None = None
        self.newest: dict[str, Snapshot] = {}
        self.log_error: Exception | None = None
        self.feeds = [SinkFeed(sink) for sink in sinks]
        self._sites = tuple(sites)
        self._recorded = tuple(recorded)
        self._identity = dict(identity)
        self._segment = log
        self._judge = alerts
        self._earlier = earlier
        self._used, self._used_anywhere = EverUsed(), EverUsed()
        self._first_use: dict[str, list[list[int]]] = {}
        self._live = None if live is None else LiveReduction(live, self._distribute)
        self._seq = 0
        size = 8 * sum(AccumulatorLayout(site.columns).width for site in sites) + along
        self._longest_queue = min(_LONGEST_QUEUE, max(2, _MOST_BYTES // max(1, size)))
        self._queue: deque[ClosedWindow] = deque()
        self._lost: deque[str] = deque()
        self._unwritten: dict[str, Snapshot] = {}
        self._withholding = Withholding(sites)
        self._silence = Silence(sites)
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="moetrace-writer", daemon=True)
        self._thread.start()

    def behind(self) -> bool:
        """Whether a window that closes now had better stay open and grow.

        That is so while 32 windows wait, or 64 MiB of them, though never for less than two.
        """
        return len(self._queue) >= self._longest_queue

    def submit(self, window: ClosedWindow) -> None:
        """Hand over a closed window. Cost: a lock and an append, no wait."""
        with self._wake:
            self._queue.append(window)
            self._wake.notify_all()

    def lose(self, layer: str) -> None:
        """Note that a router was replaced; becomes an event of the run with the next window."""
        self._lost.append(layer)

    def drain(self, deadline: float) -> bool:
        """Wait until everything submitted is in the log, at most until ``deadline`` (monotonic)."""
        with self._wake:
            return self._wake.wait_for(
                lambda: not self._queue, max(0.0, deadline - time.monotonic())
            )

    def close(self, deadline: float) -> None:
        """Write and distribute everything submitted, then end all threads, within the deadline."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        # A tracer that the collector finds may be closed by any thread, this one too.
        if threading.current_thread() is not self._thread:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._live is not None:
            self._live.close(deadline - _FOR_SINKS)
        for feed in self.feeds:
            feed.finish()  # all at once: one that hangs must not take the time of the others
        late = [feed.name for feed in self.feeds if not feed.close(deadline)]
        if late:
            _log.warning(
                "%s did not finish in time and was left behind; the run folder has it all",
                ", ".join(late),
            )

    def _run(self) -> None:
        for _ in range(_MOST_LIVES):
            try:
                self._work()
            except BaseException as error:  # thrown into this thread from outside
                self._say_lost(error)
            else:
                return

    def _recall(self) -> None:
        """Take up what earlier attempts have said: alerts that hold, experts that were used."""
        earlier, self._earlier = self._earlier, tuple
        try:
            events = list(earlier())
            if self._judge is not None:
                said = [event for event in events if event["kind"] == "alert"]
                self._judge.resume(Alert.from_event(event) for event in said)
            for event in events:
                if event["kind"] == "first_use":
                    for layer, spans in event["layers"].items():
                        self._used.recall(layer, spans)
                        self._used_anywhere.recall(layer, spans)
        except Exception as error:
            _log.warning("what earlier attempts of this run said is not known: %r", error)

    def _work(self) -> None:
        self._recall()
        while (window := self._next()) is not None:
            try:
                self._record(self._snapshot(window))
            except Exception as error:
                self._say_lost(error)
            with self._wake:
                self._queue.popleft()
                self._wake.notify_all()
            del window  # not until the next one has come: it may hold the sums of a million experts
        self._finish()

    def _next(self) -> ClosedWindow | None:
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait(1.0)
            return self._queue[0] if self._queue else None

    def _snapshot(self, window: ClosedWindow) -> Snapshot:
        stats, probed = window.records(self._sites)
        stats = self._withholding.apply(stats, probed.pop(RECEIPTS, ()))
        joined_records: dict[str, Any] = {
            # one block over two devices, or what is measured has changed within the window
            field: joined([(0, records)])
            for field, records in probed.items()
        }
        full = sum(item.saturated for item in stats.values())
        saturated = {"saturated_layers": full} if full else {}
        snapshot = Snapshot(
            **self._identity,
            seq=self._seq,
            phase=window.phase,
            first_step=window.first_step,
            last_step=window.last_step,
            wall_time=window.wall_time,
            routing=tuple(stats[index] for index in self._recorded),
            health={**window.health, **self._own_health(), **saturated},
            **joined_records,
        )
        if window.phase == "train":
            self._silence.hear(stats, self._withholding.reasons)
        return snapshot

    def _record(self, snapshot: Snapshot) -> None:
        if snapshot.phase != "train" and not any(stats.calls for stats in snapshot):
            return  # without gradients ran a reentrant checkpoint and nothing else
        waiting = self._unwritten.pop(snapshot.phase, None)
        if waiting is not None:
            snapshot = merge([waiting, snapshot])
        snapshot = replace(snapshot, seq=self._seq)
        snapshot = self._with_never_used(snapshot)
        if self._segment is not None:
            try:
                self._segment.append(snapshot)
            except Exception as error:
                self._unwritten[snapshot.phase] = snapshot
                self._say_unwritten(error)
                return
        snapshot = replace(snapshot, indices=tuple(item.reduced() for item in snapshot.indices))
        self._seq += 1
        self.latest = snapshot
        self._keep_newest(snapshot)
        self._record_lost()
        self._record_first_use()
        alerts = self._judged(snapshot)
        if self._live is None:
            self._distribute(snapshot, alerts)
        else:
            self._live.offer(snapshot, alerts)

    def _distribute(self, snapshot: Snapshot, alerts: tuple[Alert, ...]) -> None:
        if self._live is not None:
            snapshot, _ = with_never_used(snapshot, self._used_anywhere)
        for feed in self.feeds:
            feed.offer(snapshot, alerts)

    def _with_never_used(self, snapshot: Snapshot) -> Snapshot:
        snapshot, first = with_never_used(snapshot, self._used)
        for layer, spans in first.items():
            self._first_use.setdefault(layer, []).extend(spans)
        return snapshot

    def _record_first_use(self) -> None:
        if self._segment is None or not self._first_use:
            return
        try:
            self._segment.event("first_use", {"layers": self._first_use})
            self._first_use = {}
        except Exception as error:
            self._say_unwritten(error)

    def _record_lost(self) -> None:
        try:
            while self._lost:
                if self._segment is not None:
                    self._segment.event("layer_lost", {"layer": self._lost[0]})
                self._lost.popleft()
        except Exception as error:
            self._say_unwritten(error)

    def _judged(self, snapshot: Snapshot) -> tuple[Alert, ...]:
        """What is to be said about this window; a fault here costs alerts and nothing else."""
        if self._judge is None:
            return ()
        try:
            alerts = self._judge.judge(snapshot)
        except Exception as error:
            self._judge = None
            _log.warning("alerts are off from here on: judging a window failed: %r", error)
            return ()
        if not any(feed.takes_alerts for feed in self.feeds):
            for alert in alerts[:_MOST_ALERT_LINES]:
                _log.warning("%s", printable(alert.line, longest=1000))
            if len(alerts) > _MOST_ALERT_LINES:
                more = len(alerts) - _MOST_ALERT_LINES
                _log.warning("and %d more alerts at step %d", more, snapshot.last_step)
        if self._segment is not None:
            try:
                for alert in alerts:
                    self._segment.event("alert", alert.to_event())
            except Exception as error:
                self._say_unwritten(error)
        return alerts

    def _keep_newest(self, snapshot: Snapshot) -> None:
        # A dict of its own each time, since a diagnosis reads it on another thread.
        others = {name: kept for name, kept in self.newest.items() if name != snapshot.phase}
        newest = [*others.items(), (snapshot.phase, snapshot)]
        self.newest = dict(newest[-_MOST_PHASES:])

    def _finish(self) -> None:
        for snapshot in list(self._unwritten.values()):
            try:
                self._record(self._unwritten.pop(snapshot.phase))
            except Exception as error:
                self._say_lost(error)
        if self._segment is not None:
            try:
                self._segment.close()
            except Exception as error:
                self._say_unwritten(error)

    @property
    def withheld(self) -> dict[str, str]:
        """Why the numbers of a site are withheld, by its name."""
        reasons = self._withholding.reasons
        return {self._sites[router].name: reason for router, reason in reasons.items()}

    def _own_health(self) -> dict[str, Any]:
        found = {
            "failed_sinks": [feed.name for feed in self.feeds if feed.first_error is not None],
            "stalled_sinks": [feed.name for feed in self.feeds if feed.stalled],
        }
        health = {name: ", ".join(feeds) for name, feeds in found.items() if feeds}
        if self._withholding.reasons:
            health["withheld"] = self._withholding.names
        if self._segment is not None and self._segment.durability != "synced":
            health["durability"] = self._segment.durability
        return health

    def _say_unwritten(self, error: Exception) -> None:
        if self.log_error is None:
            self.log_error = error
            _log.warning(
                "the run folder could not be written: %s; windows are kept in memory and written "
                "when it can be again",
                error,
            )

    def _say_lost(self, error: BaseException) -> None:
        if self.log_error is None:
            self.log_error = error if isinstance(error, Exception) else RuntimeError(repr(error))
            _log.error("a window could not be made into a snapshot: %r", error)
