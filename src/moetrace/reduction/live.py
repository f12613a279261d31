"""The thread that adds the windows of all ranks while they train, on a gloo group of its own.

It stands between the run folder and the sinks. Rounds are keyed on step numbers: every rank enters
the round of step 10, 20, ... once, in order, also where its window of that step was merged into a
wider one. Nothing here is waited for by a step, and on any trouble a rank goes on with its own
numbers, with one warning, for the rest of the attempt.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moetrace.alerts import Alert
from moetrace.reduction.agreement import Agreement, NoAgreement, Offer
from moetrace.reduction.group import Group, GroupFailed, Meeting
from moetrace.snapshot import Snapshot, merge

__all__ = ["LiveReduction"]

_log = logging.getLogger("moetrace")

_LONGEST_QUEUE = 64
_LAST_CALL = 1.0
"""Seconds after the end of the training in which the other ranks may still turn up at all."""
_MOST_ROUNDS = 1000
"""Rounds that one window may span; a jump of the step numbers beyond it ends the reduction."""

Deliver = Callable[[Snapshot, tuple[Alert, ...]], None]


class LiveReduction:
    """Takes the windows of this rank, gives out those of all ranks together.

    Windows of ``train`` are added over the ranks; those of other phases stay this rank's own. Each
    says in ``health["ranks"]`` whose numbers it holds.

    Args:
        offer: What this rank counts.
        deliver: Takes what comes out, in order, on the thread of the reduction.
    """

    def __init__(self, offer: Offer, deliver: Deliver) -> None:
        self.trouble: str | None = None
        self._offer, self._deliver = offer, deliver
        self._meeting = Meeting.of_default_group(offer.run_id)
        self._rank = self._meeting.rank
        self._queue: deque[tuple[Snapshot, tuple[Alert, ...]]] = deque()
        self._pending: list[tuple[Snapshot, tuple[Alert, ...]]] = []
        self._round: int | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._closed_at = math.inf
        self._left_behind = False
        self._thread = threading.Thread(target=self._run, name="moetrace-reduction", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot, alerts: tuple[Alert, ...] = ()) -> None:
        """Queue a window of this rank. Waits for nobody; a long queue gets wider windows."""
        with self._wake:
            if len(self._queue) >= _LONGEST_QUEUE:
                _shorten(self._queue)
            self._queue.append((snapshot, alerts))
            self._wake.notify()

    def close(self, deadline: float) -> None:
        """Reduce what is left, at most until ``deadline`` (monotonic), then give out the rest."""
        with self._wake:
            self._closing, self._closed_at = True, time.monotonic()
            self._wake.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._wake:
            if not self._thread.is_alive():
                return
            self._left_behind = True
            left = [*self._pending, *self._queue]
        self._say("the other ranks did not answer before this one closed")
        for snapshot, alerts in left:
            self._deliver(self._own(snapshot), alerts)

    def _run(self) -> None:
        group = None
        try:
            agreement = Agreement.of(self._meeting.exchange(self._offer, self._given_up))
            if self._rank in agreement.members:
                group = self._meeting.group(agreement.members)
                self._reduce(agreement, group)
        except (NoAgreement, GroupFailed) as error:
            self._say(str(error))
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
        del group  # closes its connections, so that the others need not wait for us
        self._go_on_alone()

    def _given_up(self) -> bool:
        return time.monotonic() > self._closed_at + _LAST_CALL

    def _reduce(self, agreement: Agreement, group: Group) -> None:
        while (item := self._next()) is not None:
            snapshot, alerts = item
            if snapshot.phase != "train":
                self._give_out(self._own(snapshot), alerts)
                continue
            self._pending.append(item)
            if len(self._pending) > _LONGEST_QUEUE:
                _merge_into(self._pending, 0, 1)
            for step in self._rounds(snapshot, agreement.every):
                self._round_of(step, agreement, group)
        if self._pending:
            self._round_of(self._pending[-1][0].last_step, agreement, group)

    def _rounds(self, snapshot: Snapshot, every: int) -> range:
        """Steps whose rounds this window opens: the multiples of ``every`` that it reaches."""
        first = max(every, -(-snapshot.first_step // every) * every)
        start = first if self._round is None else self._round
        last = snapshot.last_step // every * every
        if snapshot.last_step < start - every or last - start > _MOST_ROUNDS * every:
            raise NoAgreement(f"the step numbers jumped to {snapshot.last_step}")
        self._round = max(last + every, start)
        return range(start, last + 1, every)

    def _round_of(self, step: int, agreement: Agreement, group: Group) -> None:
        ready = any(snapshot.last_step == step for snapshot, _ in self._pending)
        # Steps and answers of all ranks, each in a row of its own; a sum puts them side by side.
        table = np.zeros((len(agreement.members), 2), np.int64)
        table[agreement.members.index(self._rank)] = step, ready
        table = group.summed(table)
        if not (table[:, 0] == step).all():
            at = int(table[:, 0].argmin() if table[:, 0].min() < step else table[:, 0].argmax())
            raise NoAgreement(
                f"rank {agreement.members[at]} is at step {table[at, 0]}, this one at step {step}"
            )
        if not table[:, 1].all():
            return  # somebody's window is wider: it is added when that one ends
        taken = [item for item in self._pending if item[0].last_step <= step]
        own = merge([snapshot for snapshot, _ in taken])
        sums = agreement.packed(own)
        if self._rank not in agreement.adding:
            sums[:] = 0
        merged = replace(
            own,
            routing=agreement.unpacked(group.summed(sums)),
            health={**own.health, "ranks": list(agreement.adding)},
        )
        self._pending = self._pending[len(taken) :]
        self._give_out(merged, tuple(alert for _, alerts in taken for alert in alerts))

    def _go_on_alone(self) -> None:
        left, self._pending = self._pending, []
        for snapshot, alerts in left:
            self._give_out(self._own(snapshot), alerts)
        while (item := self._next()) is not None:
            self._give_out(self._own(item[0]), item[1])

    def _next(self) -> tuple[Snapshot, tuple[Alert, ...]] | None:
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait(1.0)
            return self._queue.popleft() if self._queue else None

    def _give_out(self, snapshot: Snapshot, alerts: tuple[Alert, ...]) -> None:
        with self._wake:
            if self._left_behind:
                return  # close() has given it out
        self._deliver(snapshot, alerts)

    def _own(self, snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, health={**snapshot.health, "ranks": [self._rank]})

    def _say(self, trouble: str) -> None:
        if self.trouble is None:
            self.trouble = trouble
            _log.warning(
                "live numbers are those of rank %d alone from here on: %s; the run folder has all "
                "ranks, and open_run adds them",
                self._rank,
                trouble,
            )


def _shorten(queue: deque[tuple[Snapshot, tuple[Alert, ...]]]) -> None:
    """Make one window of the two oldest of one phase."""
    oldest: dict[str, int] = {}
    items: list[tuple[Snapshot, tuple[Alert, ...]]] = list(queue)
    for index, (snapshot, _) in enumerate(items):
        first = oldest.setdefault(snapshot.phase, index)
        if first != index:
            _merge_into(items, first, index)
            queue.clear()
            queue.extend(items)
            return


def _merge_into(items: list[tuple[Snapshot, tuple[Alert, ...]]], first: int, second: int) -> None:
    parts: Sequence[tuple[Snapshot, tuple[Alert, ...]]] = items[first], items[second]
    merged = merge([snapshot for snapshot, _ in parts])
    items[first] = (merged, tuple(alert for _, alerts in parts for alert in alerts))
    del items[second]
