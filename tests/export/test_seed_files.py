"""The files of a weight tracker and of a gradient analysis: names, keys, columns, numbers."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest

from moetrace.export import export_run
from moetrace.run import open_run
from tests.export.made import full, gradient, kept
from tests.report.made import stats, window


class TestWeightTracking:
    def test_leaves_the_files_of_the_tracker(self, tmp_path: Path) -> None:
        """S0-23: one file a record and a summary; layers by the number of their block."""
        run = kept(tmp_path / "run", *full())
        exported = export_run(run, tmp_path / "out", form="seed000")
        names = [f"router_weight_stats_step_{step}.json" for step in (10, 20, 30)]
        assert [path.name for path in exported.files] == [*names, "router_weight_summary.json"]
        record = json.loads((tmp_path / "out" / names[1]).read_text())
        assert (record["step"], record["global_step"]) == (20, 20)
        layer = record["layers"]["layer_2"]
        assert list(layer) == ["router", "router_changes"]
        assert layer["router"]["weight_mean"] == 4.5
        assert layer["router"]["weight_shape"] == [2]
        assert layer["router_changes"]["weight_diff_norm"] == pytest.approx(math.sqrt(2))

    def test_the_analysis_example_reads_its_history(self, tmp_path: Path) -> None:
        """S0-14, S0-19: ``data['history'][-1]['layers']``, and a mean over layers from it."""
        export_run(kept(tmp_path / "run", *full()), tmp_path / "out", form="seed000")
        with (tmp_path / "out" / "router_weight_stats_step_30.json").open() as file:
            data = json.load(file)
        layers = data["history"][-1]["layers"]
        assert layers == data["layers"]
        assert np.mean([part["router"]["weight_mean"] for part in layers.values()]) == 5.5

    def test_the_first_record_has_no_changes(self, tmp_path: Path) -> None:
        """S0-08: there is nothing before it."""
        export_run(kept(tmp_path / "run", *full()), tmp_path / "out", form="seed000")
        record = json.loads((tmp_path / "out" / "router_weight_stats_step_10.json").read_text())
        assert list(record["layers"]["layer_0"]) == ["router"]

    def test_the_summary_counts_what_is_there(self, tmp_path: Path) -> None:
        """S0-13: windows without weights do not count."""
        history = [*full(), window(31, 40, stats("model.layers.0.mlp", [1, 1]))]
        export_run(kept(tmp_path / "run", *history), tmp_path / "out", form="seed000")
        assert json.loads((tmp_path / "out" / "router_weight_summary.json").read_text()) == {
            "total_steps": 3,
            "first_step": 10,
            "last_step": 30,
            "layers_tracked": ["layer_0", "layer_2"],
        }

    def test_are_those_that_the_tracker_itself_writes(self, tmp_path: Path) -> None:
        """The same record, byte for byte as JSON, from the run folder that it keeps."""
        torch = pytest.importorskip("torch")
        from moetrace.compat import RouterWeightTracker

        router = torch.nn.Module()
        router.load_balancer = torch.nn.GRUCell(3, 2)
        router.expression_projector = torch.nn.Linear(2, 4, bias=False)
        model = torch.nn.ModuleDict({"router": router})
        tracker = RouterWeightTracker(save_dir=tmp_path / "logs", save_every_n_steps=1)
        for step in (1, 2):
            tracker.track_step(model, step=step + 100, global_step=step)
            with torch.no_grad():
                router.expression_projector.weight += 0.5
        tracker.save_summary()
        tracker.close()
        export_run(open_run(tmp_path / "logs" / "run"), tmp_path / "out", form="seed000")
        written = {path.name: path for path in (tmp_path / "logs").glob("*.json")}
        assert sorted(written) == sorted(path.name for path in (tmp_path / "out").iterdir())
        for name, path in written.items():
            found = json.loads((tmp_path / "out" / name).read_text())
            assert found == json.loads(path.read_text()), name

    def test_a_run_without_weights_says_how_to_record_them(self, tmp_path: Path) -> None:
        """And leaves no folder behind."""
        run = kept(tmp_path / "run", window(1, 10, stats("a", [1, 1])))
        with pytest.raises(ValueError, match=r"probes=\[moetrace.WeightProbe\(\)\]"):
            export_run(run, tmp_path / "out", form="seed000")
        assert not (tmp_path / "out").exists()


class TestDetailedLogs:
    def test_a_file_per_window_holds_every_metric_by_layer(self, tmp_path: Path) -> None:
        """S1-09: ``step``, ``timestamp`` and ``metrics``; also under the callback's own names."""
        run = kept(tmp_path / "run", *full())
        exported = export_run(run, tmp_path / "out", form="seed001")
        assert [path.name for path in exported.files] == [
            f"detailed_log_step_{step}.json" for step in (10, 20, 30)
        ]
        record = json.loads((tmp_path / "out" / "detailed_log_step_20.json").read_text())
        assert (record["step"], record["timestamp"]) == (20, 1_700_000_001.25)
        layer = record["metrics"]["model.layers.2.mlp"]
        metrics = run.snapshots()[1]["model.layers.2.mlp"].metrics()
        assert {name: layer[name] for name in metrics} == metrics
        assert layer["expert_cv"] == metrics["load_cv"]
        assert layer["max_usage_ratio"] == metrics["load_imbalance"]
        assert record["summary"]["moe/avg_expert_cv"] == metrics["load_cv"]

    def test_what_is_undefined_is_null(self, tmp_path: Path) -> None:
        """S1-09: valid JSON whatever the logits were."""
        run = kept(tmp_path / "run", window(1, 1, stats("a", [3, 1], scoring="none")))
        export_run(run, tmp_path / "out", form="seed001")
        record = json.loads((tmp_path / "out" / "detailed_log_step_1.json").read_text())
        assert record["metrics"]["a"]["routing_entropy"] is None
        assert "moe/avg_routing_entropy" not in record["summary"]

    def test_a_run_without_windows_is_told(self, tmp_path: Path) -> None:
        """Nothing was recorded yet."""
        with pytest.raises(ValueError, match="found no training window"):
            export_run(kept(tmp_path / "run"), tmp_path / "out", form="seed001")


class TestGradientAnalysis:
    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        """The files of three windows."""
        run = kept(tmp_path / "run", *full())
        export_run(run, tmp_path / "out", form="seed003")
        return tmp_path / "out"

    def test_group_norms_have_the_columns_of_the_analysis(self, out: Path) -> None:
        """S3-32: the header to the letter, one row a window."""
        lines = (out / "gradient_analysis.group_norms.csv").read_text().splitlines()
        assert lines[0] == "step,embed_norm,attention_norm,mlp_norm,lm_head_norm,total_norm"
        assert [line.split(",")[0] for line in lines[1:]] == ["10", "20", "30"]

    def test_squares_of_the_groups_add_up_to_the_total(self, out: Path) -> None:
        """S3-32: with the 1.0 of what has no column; no lm_head is 0, and mlp holds the router."""
        table = pandas.read_csv(out / "gradient_analysis.group_norms.csv")
        squares = table.embed_norm**2 + table.attention_norm**2 + table.mlp_norm**2 + 1.0**2
        assert np.allclose(squares, table.total_norm**2, rtol=1e-12)
        assert table.lm_head_norm.tolist() == [0.0] * 3
        assert table.mlp_norm[0] == pytest.approx(math.sqrt(3 * 6.0**2 + 4.0**2))

    def test_layer_norms_stand_in_the_order_of_their_numbers(self, out: Path) -> None:
        """S3-33: 10 comes after 2; squares over layers are the square of the group."""
        layers = pandas.read_csv(out / "gradient_analysis.layer_norms.csv")
        assert list(layers) == [
            "step",
            *(f"layer_{at}_{part}" for at in (0, 2, 10) for part in ("attention", "mlp")),
        ]
        groups = pandas.read_csv(out / "gradient_analysis.group_norms.csv")
        of_layers = layers.filter(like="_attention").pow(2).sum(axis=1)
        assert np.allclose(of_layers, groups.attention_norm**2, rtol=1e-12)

    def test_the_summary_names_the_step_of_the_peak(self, out: Path) -> None:
        """S3-34: attention is sqrt(3) times 3, 6 and 9; its peak is at step 30."""
        record = json.loads((out / "gradient_analysis.summary.json").read_text())
        assert list(record) == ["embed", "attention", "mlp", "lm_head", "total"]
        attention = record["attention"]
        assert attention["peak_step"] == 30
        assert attention["mean"] == pytest.approx(6 * math.sqrt(3))
        assert attention["std"] == pytest.approx(math.sqrt(6) * math.sqrt(3))
        assert (attention["min"], attention["max"]) == (
            pytest.approx(3 * math.sqrt(3)),
            pytest.approx(9 * math.sqrt(3)),
        )

    def test_before_clipping_wins_over_the_optimizers_step(self, tmp_path: Path) -> None:
        """A window that has both is told as it was before clipping."""
        both = replace(
            window(1, 1, stats("a", [1, 1])),
            gradients=(
                gradient("", "mlp", 5.0),
                gradient("", "mlp", 1.0, measured="at_step"),
            ),
        )
        export_run(kept(tmp_path / "run", both), tmp_path / "out", form="seed003")
        (row,) = csv.DictReader((tmp_path / "out" / "gradient_analysis.group_norms.csv").open())
        assert (row["mlp_norm"], row["total_norm"]) == ("5.0", "5.0")

    def test_a_window_without_a_finite_step_is_empty(self, tmp_path: Path) -> None:
        """S3-45: no infinity and no NaN in JSON or CSV."""
        bad = replace(
            window(1, 1, stats("a", [1, 1])), gradients=(gradient("", "mlp", 5.0, nonfinite=1),)
        )
        export_run(kept(tmp_path / "run", bad), tmp_path / "out", form="seed003")
        text = (tmp_path / "out" / "gradient_analysis.group_norms.csv").read_text()
        assert text.splitlines()[1] == "1,0.0,0.0,,0.0,"
        record = json.loads((tmp_path / "out" / "gradient_analysis.summary.json").read_text())
        assert record["mlp"] == dict.fromkeys(("mean", "std", "max", "min", "peak_step"))

    def test_a_run_without_gradients_says_how_to_record_them(self, tmp_path: Path) -> None:
        """The probe and the call are named."""
        run = kept(tmp_path / "run", window(1, 10, stats("a", [1, 1])))
        with pytest.raises(ValueError, match=r"GradientProbe\(\)\]\) and tracer.on_gradients"):
            export_run(run, tmp_path / "out", form="seed003")
