import json
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moetrace.sinks import TrackioSink
from tests.alerts.made import alert
from tests.report.made import stats, window
from tests.sinks.contract import SinkContract

trackio = pytest.importorskip("trackio")

FIRST = window(1, 10, stats("layers.0.mlp", [3, 1]))
SECOND = window(11, 20, stats("layers.0.mlp", [4, 0]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs without a network go."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    places = {"TRACKIO_DIR": tmp_path, "MEDIA_DIR": tmp_path / "media"}
    for module in [item for name, item in sys.modules.items() if name.startswith("trackio")]:
        for name, place in places.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, place)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Iterator[Any]:
    """The current run of this thread."""
    yield trackio.init(project="moe", embed=False, auto_log_cpu=False, auto_log_gpu=False)
    if trackio.context_vars.current_run.get() is not None:
        trackio.finish()


def rows(folder: Path, project: str = "moe") -> list[tuple[int, dict[str, Any]]]:
    """Steps and rows, as they stand in the database."""
    with sqlite3.connect(folder / f"{project}.db") as base:
        found = base.execute("select step, metrics from metrics order by id").fetchall()
    base.close()
    return [(step, json.loads(row)) for step, row in found]


class TestTrackioSink(SinkContract):
    @pytest.fixture
    def sink(self, run: Any) -> TrackioSink:
        """One on the current run, with all that it can draw."""
        return TrackioSink(run, per_layer=True, heatmap_every=10)

    def test_every_scalar_is_read_back(self, run: Any, folder: Path) -> None:
        """S1-07: the rows hold the keys and values of `Snapshot.metrics`, by step."""
        sink = TrackioSink(run)
        for snapshot in (FIRST, SECOND):
            sink.write(snapshot)
        sink.close()
        trackio.finish()
        assert rows(folder) == [(10, FIRST.metrics()), (20, SECOND.metrics())]

    def test_logs_to_the_run_it_was_made_with_from_any_thread(self, run: Any, folder: Path) -> None:
        """Trackio's current run belongs to a thread: from another, the module has none."""
        sink = TrackioSink(trackio)
        raised: list[BaseException] = []

        def write() -> None:
            try:
                sink.write(FIRST)
                sink.alert(alert())
                sink.close()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        thread.join(60)
        trackio.finish()
        assert raised == []
        assert [step for step, _ in rows(folder)] == [10, 20]

    def test_pictures_and_histograms_are_read_back(self, run: Any, folder: Path) -> None:
        """S1-34: at the step where they are due, as images and histograms of Trackio."""
        sink = TrackioSink(run, per_layer=True, heatmap_every=20)
        sink.write(FIRST)
        sink.write(SECOND)
        sink.close()
        trackio.finish()
        (_, first), (_, second) = rows(folder)
        assert not any(isinstance(value, dict) for value in first.values())
        image = second["moe/layers.0.mlp/usage_heatmap"]
        assert image["_type"] == "trackio.image"
        assert list(folder.rglob("*.png"))
        counts = second["moe/layers.0.mlp/tokens_per_expert"]
        assert (counts["_type"], counts["values"]) == ("trackio.histogram", [4, 0])

    def test_alerts_are_read_back(self, run: Any, folder: Path) -> None:
        """A curve per kind, and an alert of Trackio's own where one starts."""
        sink = TrackioSink(run)
        sink.alert(alert())
        sink.alert(alert(state="ended", step=40, active=0))
        trackio.finish()
        assert rows(folder) == [
            (20, {"alerts/severe_imbalance": 2.0}),
            (40, {"alerts/severe_imbalance": 0.0}),
        ]
        with sqlite3.connect(folder / "moe.db") as base:
            ((title, text),) = base.execute("select title, text from alerts").fetchall()
        base.close()
        assert title == "MoE: severe_imbalance"
        assert text.endswith("layers.0.mlp: Severe expert imbalance (ratio: 4.52)")

    def test_starts_and_finishes_a_run_where_none_is_current(self, folder: Path) -> None:
        """``TrackioSink()`` is enough: what ``--to trackio`` makes."""
        sink = TrackioSink(project="own")
        sink.write(FIRST)
        sink.close()
        assert [step for step, _ in rows(folder, "own")] == [10]
        assert trackio.context_vars.current_run.get() is None

    def test_the_module_needs_a_current_run(self, folder: Path) -> None:
        """A mistake shows where it was made, with what to do."""
        with pytest.raises(ValueError, match=r"call trackio\.init\(\) first"):
            TrackioSink(trackio)
