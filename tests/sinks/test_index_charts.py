"""Tables of experts in trackers: the names of the seed, the key budget, and nothing per expert."""

import numpy as np
import pytest

from moetrace import sinks
from moetrace.index_keys import MOST_TABLES, hot_rows, index_summary, top_experts_table
from moetrace.index_stats import index_stats_of, with_shared
from moetrace.sinks import MemorySink, MlflowSink, WandbSink
from moetrace.sinks.charts import BUDGET, Charts
from moetrace.snapshot import Snapshot
from tests.alerts.made import alert
from tests.report.made import stats


def tables(count, *, num_experts=400, hot=(3, 9)):
    """Records of so many tables, each with two hot experts."""
    counts = np.full(num_experts, 2, np.int64)
    counts[list(hot)] = 200
    records = [index_stats_of(f"layers.{at}.ffn", counts, columns=20) for at in range(count)]
    return tuple(record.reduced() for record in with_shared(records))


def window(*records, last_step=1000, phase="train", routing=()):
    """A window with these tables."""
    return Snapshot("run", 0, 0, 0, phase, 1, last_step, 0.0, routing, indices=records)


def charts(**settings):
    """Charts whose pictures are due."""
    return Charts(**{"per_layer": False, "heatmap_every": 1000, **settings})


class TestScalars:
    def test_are_those_of_the_seed(self):
        """S2-15: experts used and coverage per layer, and the count of hot experts."""
        found = charts().scalars(window(*tables(2)))
        assert {k: v for k, v in found.items() if k.startswith("expert_usage/layer")} == {
            "expert_usage/layer_0_experts_used": 400.0,
            "expert_usage/layer_0_coverage": 100.0,
            "expert_usage/layer_1_experts_used": 400.0,
            "expert_usage/layer_1_coverage": 100.0,
        }
        assert found["expert_usage/hot_experts_count"] == 4.0

    def test_one_point_of_coverage_per_window(self):
        """S2-09: every window has its coverage, so that a tracker draws a line over time."""
        sink = MemorySink()
        for step, used in enumerate((100, 300, 200)):
            counts = np.where(np.arange(400) < used, 3, 0)
            sink.write(window(index_stats_of("ffn", counts).reduced(), last_step=step + 1))
        shown = [snapshot.metrics() for snapshot in sink.snapshots]
        assert [found["expert_usage/layer_0_coverage"] for found in shown] == [25.0, 75.0, 50.0]

    def test_hot_experts_are_those_of_the_window(self):
        """S2-10: the count falls when experts are hot no more; upstream's set only grows."""
        calm = index_stats_of("ffn", np.full(400, 2)).reduced()
        assert index_summary([*tables(1)])["expert_usage/hot_experts_count"] == 2.0
        assert index_summary([calm])["expert_usage/hot_experts_count"] == 0.0

    def test_stay_within_the_budget(self):
        """S2-15: with 96 tables and 48 routers a flush has at most 64 keys, worst ones too."""
        routers = tuple(stats(f"layers.{at}.mlp", [2] * 16) for at in range(48))
        found = charts().scalars(window(*tables(96), routing=routers))
        assert len(found) <= BUDGET
        assert "expert_usage/worst_coverage" in found
        assert sum("_coverage" in key and "layer_" in key for key in found) == MOST_TABLES

    def test_detail_per_layer_is_asked_for(self):
        """S2-15: per_layer gives every table its two keys."""
        found = charts(per_layer=True).scalars(window(*tables(40)))
        assert "expert_usage/layer_39_coverage" in found

    def test_what_is_not_known_has_no_key(self):
        """Ranks that added without their counts have no coverage, and no 0 in its place."""
        one, two = tables(2)
        found = index_summary([one.beside(two)])
        assert "expert_usage/layer_0_coverage" not in found
        assert "expert_usage/hot_experts_count" not in found


class TestPictures:
    def test_histogram_of_the_busiest(self):
        """S2-08, S2-15: a bar for each of the 100 busiest experts, ties by their id."""
        found = charts().histograms(window(*tables(1)))["expert_usage/layer_0_histogram"]
        assert found.counts.tolist() == [200, 200, *[2] * 98]
        assert found.edges.tolist() == list(range(101))

    def test_heat_map_of_top_experts_and_layers(self):
        """S2-12, S2-15: a row per layer, a column per expert that is busy in any of them."""
        one = tables(1, hot=(3, 9))[0]
        picture = charts().images(window(one))["expert_usage/top_experts_heatmap"]
        assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
        table = top_experts_table(tables(3))
        assert table.shape == (3, 20)
        assert table[0, :4].tolist() == pytest.approx([2 / 2.99, 2 / 2.99, 2 / 2.99, 200 / 2.99])

    def test_a_window_without_tables_draws_none(self):
        """Models without tables of experts have no such picture, histogram or key."""
        plain = window(routing=(stats("mlp", [3, 1]),))
        assert not [k for k in charts().images(plain) if k.startswith("expert_usage")]
        assert not [k for k in charts().histograms(plain) if k.startswith("expert_usage")]
        assert not [k for k in charts().scalars(plain) if k.startswith("expert_usage")]


class Recorder:
    """Stands for a run, a writer and a client: keeps the keys that are logged to it."""

    def __init__(self):
        self.keys = set()

    def log(self, row, **_):
        """As runs of W&B and Trackio do."""
        self.keys |= set(row)

    def log_batch(self, run_id, metrics, **_):
        """As MLflow's client does."""
        self.keys |= {metric.key for metric in metrics}

    def log_image(self, run_id, image, *, key, step):
        """As MLflow's client does."""
        self.keys.add(key)

    def define_metric(self, name, **_):
        """As a run of W&B does."""
        self.keys.add(f"axis of {name}")

    def flush(self):
        """As a writer does."""

    def _add(self, key, *_, **__):
        self.keys.add(key)

    add_scalar = add_image = add_histogram_raw = add_text = _add


def sink_of(tracker, recorder, **options):
    """A sink of that tracker, into the recorder; skips where the tracker is not there."""
    name = {"WandbSink": "wandb", "TrackioSink": "trackio", "MlflowSink": "mlflow"}.get(tracker)
    if name:
        pytest.importorskip(name)
    if tracker == "MlflowSink":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mlflow.MlflowClient", lambda: recorder)
            return MlflowSink("a run", **options)
    return getattr(sinks, tracker)(recorder, **options)


class TestAlias:
    @pytest.mark.parametrize(
        ("tracker", "pictures"),
        [("WandbSink", 5), ("TensorBoardSink", 5), ("TrackioSink", 4), ("MlflowSink", 2)],
    )
    def test_renames_a_group_everywhere(self, tracker, pictures):
        """S2-15: with an alias every key of the group, of scalars, pictures, histograms and the
        table, has the other name in every tracker, and all else has its own.
        """
        routers = (stats("layers.0.mlp", [3, 1]),)
        seen = {}
        for alias in (None, {"expert_usage": "peer"}):
            recorder = Recorder()
            sink_of(tracker, recorder, alias=alias).write(window(*tables(2), routing=routers))
            seen[alias is None] = {key for key in recorder.keys if not key.startswith("axis of")}
        ours = {key for key in seen[True] if key.startswith("expert_usage/")}
        assert len(ours) == 2 * 2 + 3 + pictures - 1
        assert seen[False] == {key.replace("expert_usage/", "peer/") for key in seen[True]}

    def test_one_key_of_a_group(self):
        """S2-15: the longest beginning that has an alias decides, up to the whole key."""
        alias = {"expert_usage/hot_experts_count": "hot", "expert_usage/layer_0": "first"}
        found = charts(alias=alias).scalars(window(*tables(1)))
        assert found["hot"] == 2.0
        assert found["expert_usage/layer_0_coverage"] == 100.0

    def test_a_phase_stands_before_it(self):
        """S2-15: in evaluation the other name stands behind the phase."""
        alias = {"expert_usage/": "peer/"}
        found = charts(alias=alias).scalars(window(*tables(1), phase="eval"))
        assert found["eval/peer/layer_0_coverage"] == 100.0

    def test_alerts_too(self):
        """S2-15: the keys of alerts can have other names."""
        renamed = charts(alias={"alerts": "moe alerts"}).alert(alert(kind="hot_experts"))
        assert list(renamed) == ["moe-20-alerts/hot_experts"]

    def test_wandb_draws_them_over_its_steps(self):
        """S2-15: what has another name in W&B still has the step of the window as its axis."""
        recorder = Recorder()
        sink_of("WandbSink", recorder, alias={"expert_usage": "peer"}).write(window(*tables(1)))
        assert {"axis of peer/*", "axis of moe/*"} <= recorder.keys

    @pytest.mark.parametrize("alias", [{"moe": ""}, {"": "x"}, {"/": "x"}, {"moe": 3}])
    def test_an_alias_that_names_nothing(self, alias):
        """S2-15: both sides of an alias are names."""
        with pytest.raises(ValueError, match="give a key"):
            charts(alias=alias)


class TestHotTable:
    def test_rows_are_sorted_and_capped(self):
        """S2-11: layer and expert, sorted, at most 1000 rows."""
        counts = np.zeros(5000, np.int64)
        counts[:100] = 9
        records = [index_stats_of(f"{at}", counts) for at in range(20)]
        rows = hot_rows(records)
        assert len(rows) == 1000
        assert rows == sorted(rows)
        assert rows[:2] == [(0, 0), (0, 1)]

    def test_in_wandb_it_is_a_table(self):
        """S2-11, S2-15: expert_usage/hot_experts has a row per hot expert, with its layer."""
        wandb = pytest.importorskip("wandb")

        class Run:
            def __init__(self):
                self.rows = []

            def log(self, row):
                self.rows.append(row)

        run = Run()
        WandbSink(run).write(window(*tables(2)))
        table = run.rows[0]["expert_usage/hot_experts"]
        assert isinstance(table, wandb.Table)
        assert (table.columns, table.data) == (
            ["layer", "expert"],
            [[0, 3], [0, 9], [1, 3], [1, 9]],
        )
        assert isinstance(run.rows[0]["expert_usage/layer_1_histogram"], wandb.Histogram)
