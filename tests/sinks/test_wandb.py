import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moetrace.sinks import WandbSink
from tests.alerts.made import alert
from tests.report.made import stats, window
from tests.sinks import wandb_file
from tests.sinks.contract import SinkContract

wandb = pytest.importorskip("wandb")

FIRST = window(1, 10, stats("layers.0.mlp", [3, 1]))
SECOND = window(11, 20, stats("layers.0.mlp", [4, 0]))


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for runs that need no network; W&B's service is ended with it."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_INIT_TIMEOUT", "240")  # a machine that is busy takes its time
        patch.setenv("WANDB__SERVICE_WAIT", "240")
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
        yield folder
        wandb.teardown()


@pytest.fixture(scope="module")
def shared(offline: Path) -> Iterator[Any]:
    """One run for all tests that need not read it."""
    run = wandb.init(project="contract", dir=str(offline), reinit="create_new")
    yield run
    run.finish()


@pytest.fixture(scope="module")
def logged(offline: Path) -> Path:
    """A run that two windows, an alert and another logger have written to, finished."""
    folder = offline / "logged"
    folder.mkdir()
    run = wandb.init(project="logged", dir=str(folder), reinit="create_new")
    sink = WandbSink(run, per_layer=True, heatmap_every=20)
    for step in range(5):
        run.log({"train/loss": 1.0}, step=100 + step)  # a trainer that is far ahead

    def write() -> None:
        sink.write(FIRST)
        sink.alert(alert())
        sink.write(SECOND)
        sink.write(window(20, 20, stats("layers.0.mlp", [2, 2]), phase="eval"))
        sink.alert(alert(state="ended", step=40, active=0))
        sink.close()

    thread = threading.Thread(target=write)
    thread.start()
    thread.join(60)
    run.log({"train/loss": 0.5}, step=200)
    run.finish()
    return folder


class TestWandbSink(SinkContract):
    @pytest.fixture
    def sink(self, shared: Any) -> WandbSink:
        """One on a run that is not its own."""
        return WandbSink(shared, per_layer=True, heatmap_every=10)

    def test_every_scalar_is_read_back(self, logged: Path) -> None:
        """S1-07, S1-30 to S1-33: the rows hold the keys and values of `Snapshot.metrics`."""
        rows = [row for row in wandb_file.rows(logged) if "moe/avg_expert_cv" in row]
        assert [row["moe/step"] for row in rows] == [10, 20]
        for row, snapshot in zip(rows, (FIRST, SECOND), strict=True):
            scalars = {
                key: value
                for key, value in row.items()
                if not isinstance(value, dict) and key != "train/loss"  # a row that was still open
            }
            axis = {"moe/step": snapshot.last_step, "train/global_step": snapshot.last_step}
            assert scalars == {**snapshot.metrics(per_layer=True), **axis}

    def test_no_row_is_lost_beside_another_logger(self, logged: Path) -> None:
        """S1-42: rows carry their step; a logger whose steps are ahead drops none of them."""
        rows = wandb_file.rows(logged)
        assert sum("train/loss" in row for row in rows) == 6
        assert sum("moe/step" in row for row in rows) == 5

    def test_curves_are_drawn_over_the_optimizer_step(self, logged: Path) -> None:
        """S1-47: ``moe/step`` is the axis of what the sink logs, in each phase."""
        found = wandb_file.axes(logged)
        assert {glob: found[glob] for glob in ("moe/*", "alerts/*", "eval/moe/*")} == {
            "moe/*": "moe/step",
            "alerts/*": "moe/step",
            "eval/moe/*": "moe/step",
        }

    def test_another_phase_has_keys_of_its_own(self, logged: Path) -> None:
        """An evaluation at step 20 leaves the curves of training alone."""
        (row,) = (row for row in wandb_file.rows(logged) if "eval/moe/avg_expert_cv" in row)
        assert (row["eval/moe/avg_expert_cv"], row["moe/step"]) == (0.0, 20)
        assert "moe/avg_expert_cv" not in row

    def test_pictures_and_histograms_are_read_back(self, logged: Path) -> None:
        """S1-34: at the step where they are due, as images and histograms of W&B."""
        first, second = (r for r in wandb_file.rows(logged) if "moe/avg_expert_cv" in r)
        assert not any(isinstance(value, dict) for value in first.values())
        image = second["moe/layers.0.mlp/usage_heatmap"]
        assert (image["_type"], image["width"], image["height"]) == ("image-file", 64, 64)
        assert list(logged.rglob("*.png"))
        counts = second["moe/layers.0.mlp/tokens_per_expert"]
        assert (counts["_type"], counts["values"]) == ("histogram", [4, 0])

    def test_alerts_are_read_back(self, logged: Path) -> None:
        """S1-46: a curve per kind; W&B's own alert where one starts, and none where it is over."""
        rows = [row for row in wandb_file.rows(logged) if "alerts/severe_imbalance" in row]
        assert [(r["moe/step"], r["alerts/severe_imbalance"]) for r in rows] == [(20, 2), (40, 0)]
        ((title, text),) = wandb_file.alerts(logged)
        assert title == "MoE: severe_imbalance"
        assert text.endswith("layers.0.mlp: Severe expert imbalance (ratio: 4.52)")

    def test_takes_the_open_run_of_the_module(self, offline: Path) -> None:
        """S1-17: ``WandbSink(wandb)`` logs to the run that is open, and leaves it open."""
        folder = offline / "module"
        folder.mkdir()
        run = wandb.init(project="module", dir=str(folder), reinit="finish_previous")
        sink = WandbSink(wandb)
        sink.write(FIRST)
        sink.close()
        run.log({"mine": 1})
        run.finish()
        assert [set(row) & {"mine", "moe/step"} for row in wandb_file.rows(folder)] == [
            {"moe/step"},
            {"mine"},
        ]

    def test_starts_and_finishes_a_run_where_none_is_open(self, offline: Path) -> None:
        """``WandbSink()`` is enough: what ``--to wandb`` makes."""
        sink = WandbSink(project="own")
        run = wandb.run
        assert run is not None
        sink.write(FIRST)
        sink.close()
        assert wandb.run is None


class FakeRun:
    """What a fake of W&B in somebody's tests is: an object with ``log``."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: dict[str, Any]) -> None:
        """Keep it. Takes no step."""
        self.rows.append(row)


class TestFakes:
    def test_an_object_with_log_is_enough(self) -> None:
        """S1-07: no ``step=`` is ever passed, and nothing beyond ``log`` is needed."""
        run = FakeRun()
        sink = WandbSink(run)
        sink.write(FIRST)
        sink.alert(alert())
        sink.close()
        assert run.rows[0]["moe/avg_expert_cv"] == 0.5
        assert run.rows[1]["alerts/severe_imbalance"] == 2.0

    def test_the_axis_can_be_left_to_others(self) -> None:
        """S1-42: with ``define=False`` no axis is defined; the Trainer's callback has done it."""

        class Defining(FakeRun):
            def define_metric(self, *args: Any, **kwargs: Any) -> None:
                raise AssertionError("defined an axis")

        run = Defining()
        WandbSink(run, define=False).write(FIRST)
        assert run.rows[0]["train/global_step"] == 10
        with pytest.raises(AssertionError, match="defined an axis"):
            WandbSink(run).write(FIRST)

    def test_says_that_no_run_is_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The module without a run is an error of the sink, with what to do."""
        monkeypatch.setattr(wandb, "run", None)
        with pytest.raises(RuntimeError, match=r"call wandb\.init\(\)"):
            WandbSink(wandb).write(FIRST)
