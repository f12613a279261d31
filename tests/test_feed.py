import threading
import time

import numpy as np
import pytest

from moetrace.feed import SinkFeed
from moetrace.routing_stats import RoutingStats
from moetrace.sinks import MemorySink
from moetrace.snapshot import Snapshot
from tests.alerts.made import alert


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
        """B4: each snapshot arrives once, in order."""
        sink = MemorySink()
        feed = SinkFeed(sink)
        for step in range(5):
            feed.offer(window(step))
        assert feed.close(soon())
        assert [snapshot.first_step for snapshot in sink.snapshots] == [0, 1, 2, 3, 4]

    def test_all_calls_come_from_one_thread(self):
        """B8: a sink with thread affinity sees one thread, in write and in close."""
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
        """B4: a sink that is 500 windows behind gets at most 64 more, with every token in them."""
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
        """B3: closing gives up at its deadline and says so."""
        sink = Held()
        feed = SinkFeed(sink)
        feed.offer(window(0))
        assert feed.close(time.monotonic() + 0.2) is False
        sink.go.set()
        assert feed.close(soon())


class TestFailingSink:
    @pytest.mark.parametrize("error", [RuntimeError("full"), SystemExit(3), KeyError("x")])
    def test_is_tried_again(self, error, caplog):
        """B1, B5: one failure costs one snapshot of that sink, and is said."""

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

    def test_is_broken_off_after_ten_failures_in_a_row(self, caplog, monkeypatch):
        """B1: a sink that never works gets an eleventh snapshot only after a pause."""
        monkeypatch.setattr("moetrace.feed._FIRST_PAUSE", 60.0)
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
        while not feed.broken:
            time.sleep(0.001)
        assert feed.close(soon())
        assert len(calls) == 10
        assert caplog.text.count("gets a snapshot only now and then") == 1
        assert len(caplog.records) == 2

    def test_comes_back_when_it_works_again(self, caplog, monkeypatch):
        """B1: after the pause a sink that works gets all that has waited, in order, none lost."""
        monkeypatch.setattr("moetrace.feed._FIRST_PAUSE", 0.01)

        class Down(MemorySink):
            failures = 13

            def write(self, snapshot, /):
                if self.failures:
                    self.failures -= 1
                    raise ConnectionError("no network")
                super().write(snapshot)

        sink = Down()
        feed = SinkFeed(sink)
        for step in range(40):
            feed.offer(window(step))
        assert feed.drain(soon()) or feed.broken
        while len(sink.snapshots) < 27:
            time.sleep(0.001)
        assert feed.close(soon())
        assert [snapshot.first_step for snapshot in sink.snapshots] == list(range(13, 40))
        assert caplog.text.count("gets a snapshot only now and then") == 1

    @pytest.mark.parametrize(
        "error",
        [ValueError, MemoryError, RecursionError, KeyboardInterrupt, GeneratorExit, StopIteration],
    )
    @pytest.mark.parametrize("often", [1, 2, 3])
    def test_raises_what_and_when_it_likes(self, error, often):
        """B1: of any class, at each call, each second, each third: the others get everything."""
        calls = iter(range(10**6))

        class Sometimes:
            def write(self, snapshot, /):
                if next(calls) % often == 0:
                    raise error

            def close(self):
                raise error

        bad, good = SinkFeed(Sometimes()), MemorySink()
        feed = SinkFeed(good)
        for step in range(9):
            bad.offer(window(step))
            feed.offer(window(step))
        assert bad.close(soon())
        assert feed.close(soon())
        assert len(good.snapshots) == 9
        assert bad.first_error is not None


class TestStalledSink:
    def test_is_told_once(self, caplog, monkeypatch):
        """B2: a sink that has not returned for a while is named, in the log and to the writer."""
        monkeypatch.setattr("moetrace.feed._STALLED_SECONDS", 0.01)
        sink = Held()
        feed = SinkFeed(sink)
        feed.offer(window(0))
        assert sink.entered.wait(10)
        while not feed.stalled:
            time.sleep(0.001)
        for step in range(1, 5):
            feed.offer(window(step))
        assert caplog.text.count("Held has not returned for") == 1
        sink.go.set()
        assert feed.close(soon())
        assert not feed.stalled


class TestMemory:
    def test_large_windows_wait_in_few(self, monkeypatch):
        """B4: what waits is at most 64 MiB; larger windows are added up sooner."""
        monkeypatch.setattr("moetrace.feed._MOST_BYTES", 48 * 10)  # a window here has 48 bytes
        sink = Held()
        feed = SinkFeed(sink)
        feed.offer(window(0))
        assert sink.entered.wait(10)
        longest = 0
        for step in range(1, 200):
            feed.offer(window(step))
            longest = max(longest, len(feed._queue))
        assert longest == 10
        sink.go.set()
        assert feed.close(soon())
        assert sum(snapshot["mlp"].tokens for snapshot in sink.snapshots) == 200


class TestReentry:
    def test_a_sink_may_close_its_own_feed(self):
        """B7: a sink that closes the tracer from inside its write does not wait for itself."""
        feeds, closed = [], []

        class Closes(MemorySink):
            def write(self, snapshot, /):
                closed.append(feeds[0].close(soon()))

        feeds.append(SinkFeed(Closes()))
        feeds[0].offer(window(0))
        assert feeds[0].close(soon())
        assert closed == [True]

    def test_a_snapshot_cannot_be_changed(self):
        """B6: every sink gets the same numbers, whatever another one tried to do to them."""
        refused = []

        class Vandal:
            def write(self, snapshot, /):
                for change in (
                    lambda: snapshot["mlp"].tokens_per_expert.fill(0),
                    lambda: setattr(snapshot, "phase", "eval"),
                    lambda: setattr(snapshot["mlp"], "tokens", 0),
                ):
                    try:
                        change()
                    except (ValueError, AttributeError):
                        refused.append(change)

            def close(self):
                pass

        good = MemorySink()
        feeds = [SinkFeed(Vandal()), SinkFeed(good)]
        for feed in feeds:
            feed.offer(window(0, tokens=3))
            assert feed.close(soon())
        assert len(refused) == 3
        assert good.snapshots[0]["mlp"].tokens_per_expert.tolist() == [3, 0]


class TestAlerts:
    def test_a_sink_that_is_behind_gets_the_newest_of_each_condition(self):
        """B4: what began and was over while the sink hung is told once, as it stands now."""
        sink = Held()
        feed = SinkFeed(sink)
        feed.offer(window(0))
        assert sink.entered.wait(10)
        for step in range(1, 401):
            state = "started" if step % 2 else "ended"
            feed.offer(window(step), [alert(step=step, state=state), alert(step=step, layer="b")])
        held = sum(len(queued.alerts) for queued in feed._queue)
        sink.go.set()
        assert feed.close(soon())
        assert held <= 2 * 65
        newest = {(item.kind, item.layer): item for item in sink.alerts}
        assert {item.step for item in newest.values()} == {400}
        assert newest["severe_imbalance", "layers.0.mlp"].state == "ended"

    def test_a_sink_without_the_method_is_not_told(self):
        """Alerts are only for sinks that want them; the windows arrive all the same."""
        seen = []

        class Deaf:
            def write(self, snapshot, /):
                seen.append(snapshot.last_step)

            def close(self):
                pass

        feed = SinkFeed(Deaf())
        feed.offer(window(1), [alert()])
        assert feed.close(soon())
        assert (seen, feed.takes_alerts, feed.first_error) == ([1], False, None)
