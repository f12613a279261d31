import ctypes
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from moetrace.accumulator import PackedWindow
from moetrace.closed_window import ClosedWindow
from moetrace.host_copy import HostCopies
from moetrace.layout import AccumulatorLayout
from moetrace.readers import Site
from moetrace.sinks import MemorySink
from moetrace.writer import Writer

SITE = Site("mlp", "mlp.gate", "Router", "Reader", 2, 1, "softmax", (), True, "")
IDENTITY = {"run_id": "run", "rank": 0, "attempt": 0}


class Disk:
    """A log that fails as often as it is told to."""

    durability = "synced"

    def __init__(self, failures=0):
        self.failures, self.snapshots, self.closed = failures, [], False
        self.events = []

    def append(self, snapshot):
        """Take the snapshot, or fail as an operating system would."""
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        self.snapshots.append(snapshot)

    def event(self, kind, fields):
        """Take what happened."""
        self.events.append((kind, fields))

    def close(self):
        """Note that it was closed."""
        self.closed = True


def closed(step, tokens=1, phase="train", calls=1):
    """A closed window of one router in which expert 0 got every token."""
    layout = AccumulatorLayout(2)
    sums = torch.zeros(layout.width, dtype=torch.int64)
    sums[0] = sums[layout.scalar("tokens")] = tokens
    sums[layout.scalar("calls")] = calls
    copy = HostCopies().start([PackedWindow((0,), sums)])
    return ClosedWindow(phase, step, step, 0.0, copy, {})


def written(log, *windows, sinks=()):
    """What a writer makes of these windows."""
    writer = Writer([SITE], [0], IDENTITY, log, sinks)
    for window in windows:
        writer.submit(window)
    writer.close(time.monotonic() + 10)
    return writer


class TestWriter:
    def test_numbers_snapshots_in_order(self):
        """Each window is one snapshot with the next number; the newest can be asked for."""
        log = Disk()
        writer = written(log, closed(1), closed(2), closed(2, phase="eval"))
        seen = [(s.seq, s.phase, s.last_step) for s in log.snapshots]
        assert seen == [(0, "train", 1), (1, "train", 2), (2, "eval", 2)]
        assert (writer.latest.seq, log.closed) == (2, True)

    def test_a_full_disk_makes_windows_wider(self, caplog):
        """While nothing can be written windows are kept and added; the counts are all there."""
        log = Disk(failures=2)
        written(log, closed(1, 5), closed(2, 7), closed(3, 11))
        (snapshot,) = log.snapshots
        assert (snapshot.first_step, snapshot.last_step, snapshot.seq) == (1, 3, 0)
        assert snapshot["mlp"].tokens_per_expert.tolist() == [23, 0]
        assert caplog.text.count("could not be written") == 1

    def test_closing_tries_once_more(self):
        """What could not be written is written at the end, if it then can be."""
        log = Disk(failures=1)
        written(log, closed(1, 5))
        assert [snapshot["mlp"].tokens for snapshot in log.snapshots] == [5]

    def test_sinks_get_what_was_acknowledged(self):
        """A sink never shows what the run folder does not have."""
        sink = MemorySink()
        written(Disk(failures=1), closed(1, 5), closed(2, 7), sinks=[sink])
        assert [(s.first_step, s["mlp"].tokens) for s in sink.snapshots] == [(1, 12)]

    def test_an_empty_phase_is_not_written(self):
        """A rollout window in which nothing ran is no record; an empty train window is."""
        log = Disk()
        written(log, closed(1, 0, "rollout", calls=0), closed(1, 0, "train", calls=0))
        assert [snapshot.phase for snapshot in log.snapshots] == ["train"]

    def test_scores_that_were_never_there_are_named(self):
        """A router without logits is recorded as unscored, not with an entropy of 0."""
        log = Disk()
        written(log, closed(1, 3))
        assert log.snapshots[0]["mlp"].scoring == "none"
        assert log.snapshots[0]["mlp"].metrics()["routing_entropy"] is None

    @pytest.mark.parametrize("tokens", [0, 4])
    def test_top_k_is_read_off_the_counts_where_the_router_does_not_state_it(self, tokens):
        """Assignments over tokens, and 0 where nothing was routed."""
        from dataclasses import replace

        log = Disk()
        writer = Writer([replace(SITE, top_k=0)], [0], IDENTITY, log, [])
        writer.submit(closed(1, tokens))
        writer.close(time.monotonic() + 10)
        assert log.snapshots[0]["mlp"].top_k == (1 if tokens else 0)

    def test_an_expert_that_is_used_first_is_written_down_once(self):
        """Each expert stands in one event of the log, also where the log failed in between."""
        log = Disk(failures=1)
        written(log, closed(1), closed(2), closed(3))
        assert log.events == [("first_use", {"layers": {"mlp": [[0, 1]]}})]
        assert [snapshot.health["never_used_experts"] for snapshot in log.snapshots] == [1, 1]

    def test_a_disk_that_lost_something_shows_in_the_health(self):
        """C5: after a failed sync each snapshot says that the run folder is degraded."""
        log = Disk()
        log.durability = "degraded"
        written(log, closed(1))
        assert log.snapshots[0].health["durability"] == "degraded"


class TestMemory:
    def test_windows_that_wait_are_bounded(self):
        """B4: the training thread is told to let windows grow before 64 MiB of them wait."""
        million = Site("mlp", "mlp.gate", "Router", "Reader", 10**6, 1, "softmax", (), True, "")
        for site, longest in ((SITE, 32), (million, 2)):
            writer = Writer([site], [0], IDENTITY, None, [])
            assert (writer._longest_queue, writer.behind()) == (longest, False)
            writer._queue.extend([None] * longest)
            assert writer.behind()
            writer._queue.clear()
            writer.close(time.monotonic() + 10)


class TestThread:
    def test_survives_what_is_thrown_into_it(self):
        """B10: an exception thrown into the thread from outside ends it less than four times."""
        log = Disk()
        writer = Writer([SITE], [0], IDENTITY, log, [])
        for step in range(1, 4):
            writer.submit(closed(step))
            assert writer.drain(time.monotonic() + 10)
            thread = ctypes.c_ulong(writer._thread.ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit))
        writer.submit(closed(4))
        writer.close(time.monotonic() + 10)
        assert [snapshot.last_step for snapshot in log.snapshots] == [1, 2, 3, 4]
        assert log.closed

    def test_may_close_the_writer_itself(self):
        """B9: a tracer that the collector finds on our own thread is closed without a deadlock."""
        log, writers, returned = Disk(), [], []
        append = log.append

        def closes(snapshot):
            append(snapshot)
            writers[0].close(time.monotonic() + 10)
            returned.append(snapshot.last_step)

        log.append = closes
        writers.append(Writer([SITE], [0], IDENTITY, log, []))
        writers[0].submit(closed(1))
        writers[0]._thread.join(10)
        assert not writers[0]._thread.is_alive()
        assert (returned, log.closed) == ([1], True)

    def test_one_hung_sink_does_not_take_the_time_of_another(self):
        """B3: at the end all sinks are asked at once, so that a good one is closed in time."""
        hung, good = threading.Event(), MemorySink()
        good.close = lambda: good.snapshots.append("closed")
        bad = SimpleNamespace(write=lambda snapshot: hung.wait(30), close=hung.clear)
        writer = Writer([SITE], [0], IDENTITY, Disk(), [bad, good])
        writer.submit(closed(1))
        writer.drain(time.monotonic() + 10)
        writer.close(time.monotonic() + 0.5)
        assert good.snapshots[-1] == "closed"
        hung.set()
        assert writer.feeds[0].close(time.monotonic() + 10)
