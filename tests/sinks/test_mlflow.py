import threading
from collections.abc import Iterator
from typing import Any

import pytest

from moetrace.sinks import MlflowSink
from tests.alerts.made import alert
from tests.report.made import stats, window
from tests.sinks.contract import SinkContract

mlflow = pytest.importorskip("mlflow")

FIRST = window(1, 10, stats("layers[0]", [3, 1]), stats("layers 0", [2, 2]))
SECOND = window(11, 20, stats("layers[0]", [4, 0]), stats("layers 0", [2, 2]))


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A store of files: all that the small package has besides a server's."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(folder.as_uri())
        mlflow.set_experiment("moetrace")
        yield
        mlflow.end_run()
        mlflow.set_tracking_uri("")


@pytest.fixture
def run() -> Iterator[Any]:
    """The active run of this thread."""
    with mlflow.start_run() as active:
        yield active


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, as MLflow reads them back."""
    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run_id, key)]


def runs() -> list[Any]:
    """All runs there are."""
    return list(mlflow.search_runs(output_format="list"))


class TestMlflowSink(SinkContract):
    @pytest.fixture
    def sink(self, run: Any) -> MlflowSink:
        """One on the active run, with all that it can draw."""
        return MlflowSink(run, per_layer=True, heatmap_every=10)

    def test_every_scalar_is_read_back(self, run: Any) -> None:
        """S1-07: the run holds the keys and values of `Snapshot.metrics`, by step."""
        sink = MlflowSink(run)
        for snapshot in (FIRST, SECOND):
            sink.write(snapshot)
        sink.close()
        keys = FIRST.metrics()
        assert set(mlflow.get_run(run.info.run_id).data.metrics) == set(keys)
        for key in keys:
            expected = [(s.last_step, s.metrics()[key]) for s in (FIRST, SECOND)]
            assert history(run.info.run_id, key) == expected

    def test_logs_to_the_run_it_was_made_with_from_any_thread(self, run: Any) -> None:
        """From another thread MLflow's module would open a second run, in silence."""
        before = len(runs())
        sink = MlflowSink(mlflow)
        thread = threading.Thread(target=lambda: (sink.write(FIRST), sink.close()))
        thread.start()
        thread.join(60)
        assert sink.run_id == run.info.run_id
        assert history(sink.run_id, "moe/avg_expert_cv") == [(10, 0.25)]
        assert len(runs()) == before

    def test_takes_names_that_mlflow_refuses(self, run: Any) -> None:
        """J13: brackets are spelled, and two layers stay two metrics."""
        sink = MlflowSink(run, per_layer=True)
        sink.write(FIRST)
        sink.close()
        found = mlflow.get_run(run.info.run_id).data.metrics
        assert found["moe/layers-5b-0-5d-/max_usage_ratio"] == 1.5
        assert found["moe/layers-20-0/max_usage_ratio"] == 1.0

    def test_sends_large_models_in_batches_that_mlflow_takes(self, run: Any) -> None:
        """More than 1,000 metrics of one window all arrive."""
        layers = [stats(f"layers.{index}.mlp", [3, 1]) for index in range(210)]
        sink = MlflowSink(run, per_layer=True)
        sink.write(window(1, 10, *layers))
        sink.close()
        found = mlflow.get_run(run.info.run_id).data.metrics
        assert sum(key.endswith("/expert_cv") for key in found) == 210

    def test_pictures_are_logged_where_they_are_due(self, run: Any) -> None:
        """S1-34: an image of MLflow's own, at the step it was due."""
        pytest.importorskip("PIL")
        sink = MlflowSink(run, heatmap_every=20)
        sink.write(FIRST)
        sink.write(SECOND)
        sink.close()
        names = [item.path for item in mlflow.MlflowClient().list_artifacts(sink.run_id, "images")]
        assert sum(name.endswith(".png") for name in names) == 1
        assert all("usage_heatmap+step+20+" in name for name in names)

    def test_alerts_are_read_back(self, run: Any) -> None:
        """The number of layers that an alert holds in is a metric."""
        sink = MlflowSink(run)
        sink.alert(alert())
        sink.alert(alert(state="ended", step=40, active=0))
        sink.close()
        assert history(sink.run_id, "alerts/severe_imbalance") == [(20, 2.0), (40, 0.0)]

    def test_leaves_a_run_of_somebody_else_open(self, run: Any) -> None:
        """Only a run of its own is ended."""
        MlflowSink(run).close()
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"

    def test_starts_and_ends_a_run_where_none_is_active(self) -> None:
        """``MlflowSink()`` is enough: what ``--to mlflow`` makes."""
        sink = MlflowSink()
        sink.write(FIRST)
        sink.close()
        found = mlflow.get_run(sink.run_id)
        assert (found.info.status, found.data.metrics["moe/avg_expert_cv"]) == ("FINISHED", 0.25)
        assert mlflow.get_experiment(found.info.experiment_id).name == "moetrace"
        assert mlflow.active_run() is None

    def test_the_module_needs_an_active_run(self) -> None:
        """A mistake shows where it was made, with what to do."""
        with pytest.raises(ValueError, match=r"call mlflow\.start_run\(\) first"):
            MlflowSink(mlflow)
