import pytest

from moetrace.sinks import MemorySink
from tests.sinks.contract import ALERTS, WINDOWS, SinkContract


class TestMemorySink(SinkContract):
    @pytest.fixture
    def sink(self) -> MemorySink:
        """An empty one."""
        return MemorySink()

    def test_keeps_the_very_snapshots_in_their_order(self) -> None:
        """What was written stands in ``snapshots``, uncopied, also after the close."""
        sink = MemorySink()
        for snapshot in WINDOWS:
            sink.write(snapshot)
        sink.close()
        assert len(sink.snapshots) == len(WINDOWS)
        assert all(kept is given for kept, given in zip(sink.snapshots, WINDOWS, strict=True))

    def test_keeps_alerts_in_their_order(self) -> None:
        """What was said stands in ``alerts``."""
        sink = MemorySink()
        for item in ALERTS:
            sink.alert(item)
        assert sink.alerts == list(ALERTS)
