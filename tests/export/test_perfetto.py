"""A run as counters of a trace, by the shape that the Trace Event Format asks for."""

import json
from dataclasses import replace
from pathlib import Path

from moetrace.export import export_run
from moetrace.export.perfetto import SHOWN
from moetrace.run import open_run
from moetrace.store import RunFolder
from tests.alerts.made import alert
from tests.export.made import LAYERS, full, kept
from tests.report.made import stats, window

FIELDS = {
    "M": {"ph", "name", "pid", "args"},
    "C": {"ph", "name", "pid", "ts", "args"},
    "i": {"ph", "name", "cat", "pid", "tid", "ts", "s"},
}


def events(folder: Path) -> list[dict]:
    """The events of the trace."""
    record = json.loads((folder / "perfetto.json").read_text(encoding="utf-8"))
    return record["traceEvents"]


class TestPerfetto:
    def test_every_event_has_the_fields_of_its_phase(self, tmp_path: Path) -> None:
        """Metadata, counters and instants; counters hold numbers and nothing else."""
        export_run(kept(tmp_path / "run", *full()), tmp_path / "out", form="perfetto")
        found = events(tmp_path / "out")
        assert {event["ph"] for event in found} == {"M", "C"}
        for event in found:
            assert set(event) == FIELDS[event["ph"]]
            if event["ph"] == "C":
                assert all(isinstance(value, int | float) for value in event["args"].values())
                assert isinstance(event["ts"], int)

    def test_a_counter_holds_the_metrics_of_its_layer(self, tmp_path: Path) -> None:
        """At the time at which the window closed, in microseconds."""
        run = kept(tmp_path / "run", *full())
        export_run(run, tmp_path / "out", form="perfetto")
        own = [event for event in events(tmp_path / "out") if event["name"] == LAYERS[1]]
        assert [event["ts"] for event in own] == [
            1_700_000_000_250_000 + at * 1_000_000 for at in range(3)
        ]
        metrics = run.snapshots()[2][LAYERS[1]].metrics()
        assert own[2]["args"] == {name: metrics[name] for name in SHOWN}

    def test_phases_are_processes(self, tmp_path: Path) -> None:
        """Each has its name, and its own counters."""
        history = [*full(windows=1), window(10, 10, stats("a", [3, 1]), phase="eval")]
        run = kept(tmp_path / "run", *history)
        export_run(run, tmp_path / "out", form="perfetto")
        names = {e["pid"]: e["args"]["name"] for e in events(tmp_path / "out") if e["ph"] == "M"}
        assert names == {1: f"moetrace {run.run_id} train", 2: f"moetrace {run.run_id} eval"}
        assert {e["pid"] for e in events(tmp_path / "out") if e["name"] == "a"} == {2}

    def test_time_never_runs_backwards(self, tmp_path: Path) -> None:
        """A clock that was set back does not reorder windows."""
        history = [replace(item, wall_time=100.0 - at) for at, item in enumerate(full())]
        export_run(kept(tmp_path / "run", *history), tmp_path / "out", form="perfetto")
        times = {event["ts"] for event in events(tmp_path / "out") if event["ph"] == "C"}
        assert times == {100_000_000}

    def test_a_figure_that_is_withheld_has_no_value(self, tmp_path: Path) -> None:
        """Absent, not 0."""
        shy = window(1, 1, stats("a", [3, 1], scoring="none"))
        export_run(kept(tmp_path / "run", shy), tmp_path / "out", form="perfetto")
        (own,) = (event for event in events(tmp_path / "out") if event["name"] == "a")
        assert "routing_entropy" not in own["args"]
        assert "load_cv" in own["args"]

    def test_alerts_are_instants(self, tmp_path: Path) -> None:
        """Where they were raised, with their words."""
        folder = RunFolder.prepare(tmp_path / "run")
        segment = folder.open_segment(rank=0, header={})
        segment.event("alert", alert().to_event())
        segment.close()
        run = open_run(tmp_path / "run")
        export_run(run, tmp_path / "out", form="perfetto")
        (event,) = events(tmp_path / "out")
        assert set(event) == FIELDS["i"]
        assert event["ts"] == round(run.events()[0]["wall_time"] * 1e6)
        assert event["name"].startswith("alert started: layers.0.mlp: Severe")
