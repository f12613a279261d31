"""What every sink must do, whatever it is for: subclass `SinkContract` and give it a ``sink``."""

import threading

import pytest
from torch import zeros

from moetrace import attach
from moetrace.sinks import Sink
from tests.alerts.made import alert
from tests.report.made import stats, window
from tests.tiny import ScriptedModel

WINDOWS = (
    window(1, 10, stats("layers.0.mlp", [3, 1]), stats("layers.1.mlp", [2, 2])),
    window(1, 10, stats("layers.0.mlp", [4, 0]), phase="eval"),
    window(11, 20, stats("layers.0.mlp", [0, 0])),
    window(21, 30, stats("a router without logits", [1, 1], scoring="none")),
    window(31, 31),
    window(32, 40, stats("\x1b]0;title\x07\u202e[/b]\ud800", [3, 1])),
)
"""An ordinary window, another phase, nothing routed, no scores, no layers, a hostile name."""


ALERTS = (
    alert(),
    alert(
        kind="low_entropy", phase="a phase", message="layers.0.mlp: Low routing entropy (0.0100)"
    ),
    alert(layer="\x1b]0;t\x07\ud800", message="\x1b]0;t\x07\ud800: Severe expert imbalance"),
    alert(state="ended", step=40, value=1.2, active=0),
)
"""One that starts, one of another phase, one of a layer with a hostile name, one that is over."""


class SinkContract:
    @pytest.fixture
    def sink(self) -> Sink:
        """The sink under test."""
        raise NotImplementedError

    def test_takes_every_kind_of_window(self, sink: Sink) -> None:
        """No snapshot that a run can hold makes the sink raise."""
        for snapshot in WINDOWS:
            sink.write(snapshot)
        sink.close()

    def test_takes_every_kind_of_alert(self, sink: Sink) -> None:
        """A sink that wants to be told of alerts takes any that can be raised."""
        told = getattr(sink, "alert", None)
        sink.write(WINDOWS[0])
        for item in ALERTS if told is not None else ():
            told(item)
        sink.close()

    def test_may_be_closed_without_a_window(self, sink: Sink) -> None:
        """A training that ends before its first window closes the sink all the same."""
        sink.close()

    def test_leaves_the_snapshot_as_it_was(self, sink: Sink) -> None:
        """The next sink sees the same snapshot."""
        before = [snapshot.to_dict() for snapshot in WINDOWS]
        for snapshot in WINDOWS:
            sink.write(snapshot)
        sink.close()
        assert [snapshot.to_dict() for snapshot in WINDOWS] == before

    def test_works_on_a_thread_that_did_not_make_it(self, sink: Sink) -> None:
        """The tracer calls a sink from a thread of its own, never from the one that made it."""
        raised: list[BaseException] = []

        def run() -> None:
            try:
                for snapshot in WINDOWS:
                    sink.write(snapshot)
                sink.close()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert raised == []

    def test_serves_a_tracer(self, sink: Sink) -> None:
        """Attached to a model it takes what the tracer gives it, and fails at nothing."""
        model = ScriptedModel([[0, 1], [2, 3]], num_experts=4)
        tracer = attach(model, every=1, sinks=[sink])
        for _ in range(3):
            tracer.on_step_begin()
            model(zeros(2, 4))
            tracer.on_step_end()
        tracer.close()
        assert tracer.failed_sinks == {}
