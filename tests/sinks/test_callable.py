import pytest

from moetrace import Alert
from moetrace.sinks import CallableSink
from moetrace.snapshot import Snapshot
from tests.sinks.contract import ALERTS, WINDOWS, SinkContract


class TestCallableSink(SinkContract):
    @pytest.fixture
    def sink(self) -> CallableSink:
        """One around a function that reads the snapshot."""
        return CallableSink(Snapshot.metrics)

    def test_calls_the_function_once_with_each_snapshot(self) -> None:
        """The function sees the very snapshots, in their order, and its result goes nowhere."""
        seen: list[Snapshot] = []
        sink = CallableSink(seen.append)
        for snapshot in WINDOWS:
            sink.write(snapshot)
        sink.close()
        assert len(seen) == len(WINDOWS)
        assert all(one is other for one, other in zip(seen, WINDOWS, strict=True))

    def test_lets_the_function_raise(self) -> None:
        """What the function raises comes out, so that the tracer can name the sink that failed."""

        def fail(snapshot: Snapshot) -> None:
            raise RuntimeError(f"no network at step {snapshot.last_step}")

        with pytest.raises(RuntimeError, match="no network at step 10"):
            CallableSink(fail).write(WINDOWS[0])

    def test_refuses_what_cannot_be_called(self) -> None:
        """A mistake shows where it was made, not in the first window."""
        with pytest.raises(TypeError, match="found str; CallableSink takes a function"):
            CallableSink("print")  # type: ignore[arg-type]

    def test_calls_a_second_function_with_each_alert(self) -> None:
        """Alerts have a function of their own; without it the sink takes none."""
        said: list[Alert] = []
        sink = CallableSink(print, alert=said.append)
        for item in ALERTS:
            sink.alert(item)
        assert said == list(ALERTS)
        assert not hasattr(CallableSink(print), "alert")
