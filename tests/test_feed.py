import threading
import time

import numpy as np
import pytest

from moetrace.feed import SinkFeed
from moetrace.routing_stats import RoutingStats
from moetrace.sinks import MemorySink
from moetrace.snapshot import Snapshot


def window(step, phase="train", tokens=1):
    """A snapshot of one step in which expert 0 of two got every token."""
    counts = np.array([tokens, 0])
    stats = RoutingStats("mlp", 2, 1, "none", counts, counts * 0, counts * 0, tokens=tokens)
    return Snapshot("run", 0, 0, step, phase, step, step, 0.0, (stats,))


def soon(seconds=10.0):
    """A deadline that only a hang misses."""
    return time.monotonic() + seconds


class Held(MemorySink):
    """A sink that waits in its first write until the test lets it go."""

    def __init__(self):
        super().__init__()
        self.entered, self.go = threading.Event(), threading.Event()

    def write(self, snapshot, /):
        """Say that it is in here, and wait."""
        self.entered.set()
        self.go.wait(30)
        super().write(snapshot)


class TestOrder:
    def test_everything_in_order_then_closed(self):
        """Each snapshot arrives once, in order."""
        sink = MemorySink()
        feed = SinkFeed(sink)
        for step in range(5):
            feed.offer(window(step))
        assert feed.close(soon())
        assert [snapshot.first_step for snapshot in sink.snapshots] == [0, 1, 2, 3, 4]

    def test_all_calls_come_from_one_thread(self):
        """A sink with thread affinity sees one thread, in write and in close."""
        seen = set()

        class Affine:
            def write(self, snapshot, /):
                seen.add(threading.get_ident())

            def close(self):
                seen.add(threading.get_ident())

        feed = SinkFeed(Affine())
        feed.offer(window(1))
        feed.offer(window(2))
        feed.close(soon())
        assert len(seen) == 1
        assert threading.get_ident() not in seen


class TestSlowSink:
    def test_windows_get_wider_and_nothing_is_lost(self):
        """A sink that is 500 windows behind gets at most 64 more, with every token in them."""
        sink = Held()
        feed = SinkFeed(sink)
        feed.offer(window(0))
        assert sink.entered.wait(10)
        for step in range(1, 500):
            feed.offer(window(step))
        sink.go.set()
        assert feed.close(soon())
        assert len(sink.snapshots) <= 65
        assert sum(int(s["mlp"].tokens_per_expert[0]) for s in sink.snapshots) == 500
        assert (sink.snapshots[0].first_step, sink.snapshots[-1].last_step) == (0, 499)

    def test_phases_are_never_mixed(self):
        """Neighbours of two phases stay apart."""
        sink = Held()
        feed = SinkFeed(sink)
        feed.offer(window(0))
        assert sink.entered.wait(10)
        for step in range(1, 200):
            feed.offer(window(step, "train" if step % 4 else "eval"))
        sink.go.set()
        assert feed.close(soon())
        tokens = {"train": 0, "eval": 0}
        for snapshot in sink.snapshots:
            tokens[snapshot.phase] += snapshot["mlp"].tokens
        assert tokens == {"train": 151, "eval": 49}

    def test_a_hung_sink_does_not_hold_the_exit(self):
        """Closing gives up at its deadline and says so."""
        sink = Held()
        feed = SinkFeed(sink)
        feed.offer(window(0))
        assert feed.close(time.monotonic() + 0.2) is False
        sink.go.set()
        assert feed.close(soon())


class TestFailingSink:
    @pytest.mark.parametrize("error", [RuntimeError("full"), SystemExit(3), KeyError("x")])
    def test_is_tried_again(self, error, caplog):
        """One failure costs one snapshot of that sink, and is said."""

        class Once(MemorySink):
            def write(self, snapshot, /):
                if snapshot.first_step == 0:
                    raise error
                super().write(snapshot)

        sink = Once()
        feed = SinkFeed(sink)
        feed.offer(window(0))
        feed.offer(window(1))
        assert feed.close(soon())
        assert [snapshot.first_step for snapshot in sink.snapshots] == [1]
        assert caplog.text.count("Once raised in write") == 1

    def test_is_broken_off_after_ten_failures_in_a_row(self, caplog):
        """A sink that never works gets no eleventh snapshot."""
        calls = []

        class Never:
            def write(self, snapshot, /):
                calls.append(snapshot)
                raise OSError("no network")

            def close(self):
                raise OSError("no network")

        feed = SinkFeed(Never())
        for step in range(30):
            feed.offer(window(step))
        assert feed.close(soon())
        assert (len(calls), feed.broken) == (10, True)
        assert caplog.text.count("gets no more snapshots") == 1
