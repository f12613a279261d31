import pytest

from moetrace import Alert
from tests.alerts.made import alert


class TestAlert:
    def test_its_event_reads_back(self) -> None:
        """S1-46: what a run folder holds of an alert is the alert, whatever stands beside it."""
        said = alert(wall_time=3.5)
        event = {**said.to_event(), "rank": 0, "attempt": 2, "kind": "alert"}
        assert event["alert"] == "severe_imbalance"
        assert Alert.from_event(event) == said

    @pytest.mark.parametrize("event", [{}, {"kind": "alert", "fields": 3}, {"alert": "x"}])
    def test_another_event_is_refused(self, event: dict[str, object]) -> None:
        """An event of another kind is named as what it is."""
        with pytest.raises(ValueError, match="not the event of an alert"):
            Alert.from_event(event)
