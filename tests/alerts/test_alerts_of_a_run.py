"""From a router to the run folder, the sinks and the log: alerts of a real tracer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import zeros

from moetrace import Alert, AlertRules, Snapshot, attach, open_run
from moetrace.sinks import CallableSink, MemorySink
from tests.alerts.made import PLAIN
from tests.tiny import ScriptedModel

HOT = [[0]] * 90 + [[1]] * 4 + [[2]] * 2 + [[3]] * 2 + [[4]] + [[5]]
EVEN = [[expert] for expert in range(6)] * 20


def trained(model: ScriptedModel, scripts: Sequence[Sequence[list[int]]], **options: Any) -> None:
    """Train one step per script, each step with its own routing."""
    first = options.pop("first", 1)
    with attach(model, every=1, **options) as tracer:
        for step, script in enumerate(scripts, first):
            model.blocks[0].gate.script = script
            tracer.on_step_begin(step)
            model(zeros(len(script), 4))
            tracer.on_step_end(step)


@pytest.fixture
def model() -> ScriptedModel:
    """One router of 6 experts, top-1."""
    return ScriptedModel(EVEN, num_experts=6)


class TestAlertsOfARun:
    def test_stand_in_the_run_folder(self, model: ScriptedModel, tmp_path: Path) -> None:
        """What was said is an event of the run, in its order, and reads back as an alert."""
        sink = MemorySink()
        trained(model, [EVEN, HOT, HOT, HOT, EVEN, EVEN], run=tmp_path / "run", sinks=[sink])
        events = [
            event for event in open_run(tmp_path / "run").events() if event["kind"] == "alert"
        ]
        assert len(events) > 1
        assert [Alert.from_event({**e, "wall_time": 0.0}).line for e in events] == [
            alert.line for alert in sink.alerts
        ]
        said = [(e["state"], e["step"]) for e in events if e["alert"] == "severe_imbalance"]
        assert said == [("started", 3), ("ended", 6)]

    def test_come_after_the_snapshot_they_were_judged_on(self, model: ScriptedModel) -> None:
        """A sink sees the window first, then what is wrong with it."""
        order: list[tuple[str, int]] = []

        def window(snapshot: Snapshot) -> None:
            order.append(("window", snapshot.last_step))

        def said(alert: Alert) -> None:
            order.append(("alert", alert.step))

        trained(model, [EVEN, HOT], sinks=[CallableSink(window, alert=said)], alerts=PLAIN)
        assert order[:2] == [("window", 1), ("window", 2)]
        assert set(order[2:]) == {("alert", 2)}

    def test_without_a_sink_for_them_they_are_warnings(
        self, model: ScriptedModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        """S1-14: an alert that nobody shows is a line of the log, in the seeds' words."""
        trained(model, [HOT], sinks=[CallableSink(repr)], alerts=PLAIN)
        assert (
            "\u26a0\ufe0f  MoE Alert at step 1: blocks.0: Severe expert imbalance (ratio: 5.40)"
            in caplog.messages
        )

    def test_with_a_sink_for_them_the_log_is_quiet(
        self, model: ScriptedModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing is said twice."""
        trained(model, [HOT], sinks=[MemorySink()], alerts=PLAIN)
        assert "MoE Alert" not in caplog.text

    def test_many_at_once_are_a_few_lines(self, caplog: pytest.LogCaptureFixture) -> None:
        """Twelve layers that go wrong in one window are five lines and how many more there are."""
        model = ScriptedModel(*[HOT] * 12, num_experts=6)
        rules = AlertRules(above_floor=False, duration=1, usage_threshold=None)
        with attach(model, every=1, alerts=rules) as tracer:
            tracer.on_step_begin()
            model(zeros(len(HOT), 4))
            tracer.on_step_end()
        lines = [record.getMessage() for record in caplog.records if "lert" in record.getMessage()]
        assert len(lines) == 6
        assert lines[-1].startswith("and ")
        assert lines[-1].endswith(" more alerts at step 1")

    def test_none_switches_them_off(
        self, model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """``alerts=None`` judges nothing, says nothing, writes nothing."""
        sink = MemorySink()
        trained(model, [HOT] * 4, run=tmp_path / "run", sinks=[sink], alerts=None)
        assert sink.alerts == []
        assert "MoE Alert" not in caplog.text
        assert {event["kind"] for event in open_run(tmp_path / "run").events()} == {"first_use"}

    def test_another_object_is_refused(self, model: ScriptedModel) -> None:
        """A mistake shows at attach, with what to give."""
        with pytest.raises(TypeError, match=r"found dict as alerts; give moetrace\.AlertRules"):
            attach(model, alerts={"entropy_threshold": 0.1})  # type: ignore[arg-type]

    def test_a_fault_in_judging_costs_alerts_and_nothing_else(
        self,
        model: ScriptedModel,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Windows go on, the sinks get them, and it is said once."""

        def fail(*args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("judge")

        monkeypatch.setattr("moetrace.alerts.judge.readings", fail)
        sink = MemorySink()
        trained(model, [HOT] * 3, sinks=[sink], alerts=PLAIN)
        assert [snapshot.last_step for snapshot in sink.snapshots] == [1, 2, 3]
        assert caplog.text.count("alerts are off from here on") == 1

    def test_a_sink_that_raises_on_an_alert_gets_the_next_window(
        self, model: ScriptedModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a sink does with an alert is its own matter."""
        seen: list[int] = []

        def fail(alert: Alert) -> None:
            raise RuntimeError("no pager")

        sink = CallableSink(lambda snapshot: seen.append(snapshot.last_step), alert=fail)
        trained(model, [HOT, EVEN, HOT], sinks=[sink], alerts=PLAIN)
        assert seen == [1, 2, 3]
        assert caplog.text.count("no pager") == 1


class TestResumedRun:
    def test_what_still_holds_is_not_said_again(self, model: ScriptedModel, tmp_path: Path) -> None:
        """An alert of the attempt before holds on, and its end is told."""
        run = tmp_path / "run"
        trained(model, [HOT] * 3, run=run, sinks=[MemorySink()])
        again = MemorySink()
        trained(model, [HOT, HOT, HOT, EVEN, EVEN], run=run, first=4, sinks=[again])
        said = [(a.state, a.step) for a in again.alerts if a.kind == "severe_imbalance"]
        assert said == [("ended", 8)]

    def test_what_cannot_be_read_is_forgotten(
        self, model: ScriptedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A log that somebody has filled with other things costs the memory of it, no window."""
        run = tmp_path / "run"
        trained(model, [HOT] * 3, run=run, sinks=[MemorySink()])
        (log,) = run.rglob("log.jsonl")
        log.write_bytes(b'{"record":"event",rubbish}\n' * 5)
        again = MemorySink()
        trained(model, [HOT, HOT, HOT], run=run, first=4, sinks=[again])
        assert [s.last_step for s in again.snapshots] == [4, 5, 6]
        assert ("started", 5) in [(a.state, a.step) for a in again.alerts]


class TestNeverUsed:
    def test_is_counted_since_the_start_of_training(self, model: ScriptedModel) -> None:
        """S1-32: an expert that had a token once is used, though the window leaves it out."""
        sink = MemorySink()
        trained(model, [[[0]] * 4, [[1]] * 4, [[0]] * 4], sinks=[sink], alerts=None)
        metrics = [snapshot.metrics() for snapshot in sink.snapshots]
        assert [found["moe/total_unused_experts"] for found in metrics] == [5.0, 4.0, 4.0]
        assert [found["moe/dead_experts_window"] for found in metrics] == [5.0, 5.0, 5.0]

    def test_adds_up_over_the_layers(self) -> None:
        """S1-32: the sum over all layers."""
        model = ScriptedModel([[0, 1]] * 4, [[2, 3]] * 4, num_experts=6)
        sink = MemorySink()
        with attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(zeros(4, 4))
            tracer.on_step_end()
        assert sink.snapshots[0].metrics()["moe/total_unused_experts"] == 8.0

    def test_goes_on_after_a_resume(self, model: ScriptedModel, tmp_path: Path) -> None:
        """What the attempt before has used is used."""
        run = tmp_path / "run"
        trained(model, [[[0]] * 4, [[1]] * 4], run=run)
        sink = MemorySink()
        trained(model, [[[5]] * 4], run=run, first=3, sinks=[sink])
        assert sink.snapshots[0].metrics()["moe/total_unused_experts"] == 3.0
        read = [w.metrics()["moe/total_unused_experts"] for w in open_run(run).snapshots()]
        assert read == [5.0, 4.0, 3.0]

    def test_an_evaluation_is_no_training(self, model: ScriptedModel) -> None:
        """What evaluation routes to is not used by training, and has no such figure."""
        sink = MemorySink()
        with attach(model, every=1, sinks=[sink]) as tracer:
            model.eval()
            model(zeros(len(EVEN), 4))
            model.train()
            model.blocks[0].gate.script = [[0]] * 4
            tracer.on_step_begin()
            model(zeros(4, 4))
            tracer.on_step_end()
        found = {snapshot.phase: snapshot.metrics() for snapshot in sink.snapshots}
        assert found["train"]["moe/total_unused_experts"] == 5.0
        assert "moe/total_unused_experts" not in found["eval"]
