"""The tracker of expert usage under its own name: windows, hot experts, summary, W&B."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import moetrace
from moetrace.compat import ExpertUsageTracker
from moetrace.export import export_run
from moetrace.index_keys import index_summary
from moetrace.probes import IndexProbe
from moetrace.sinks import MemorySink
from tests.product_keys import ProductKeyLayer, ProductKeyModel


def choices(*experts, batch=2, length=3, heads=1):
    """Indices of shape (B, S, H, K) in which every token chooses these experts."""
    return torch.tensor(experts).expand(batch, length, heads, len(experts))


@pytest.fixture
def tracker():
    """Eight experts in two layers, windows of two steps, nothing in W&B."""
    made = ExpertUsageTracker(8, 2, log_freq=2, usage_threshold=3.0, wandb_enabled=False)
    yield made
    made.close()


class TestWindows:
    def test_step_end_says_when_a_window_closes(self, tracker):
        """S2-02, S2-04: every log_freq-th step, whatever was recorded in between."""
        assert [tracker.step_end() for _ in range(5)] == [False, True, False, True, False]

    def test_counts_are_of_the_window(self, tracker):
        """S2-06: each window has the choices of its own steps, per layer."""
        tracker.record_usage(0, choices(1, 2), 2, 3)
        tracker.record_usage(1, choices(7), 2, 3)
        tracker.step_end()
        tracker.record_usage(0, choices(1), 2, 3)
        tracker.step_end()
        first, second = tracker.latest
        assert first.tokens_per_expert.tolist() == [0, 12, 6, 0, 0, 0, 0, 0]
        assert second.tokens_per_expert.tolist() == [0, 0, 0, 0, 0, 0, 0, 6]
        assert (first.draws, first.tokens) == (18, 12)
        tracker.step_end()
        tracker.step_end()
        assert [record.draws for record in tracker.latest] == [0, 0]

    def test_hot_experts_are_those_of_the_window(self, tracker):
        """S2-10: what was hot and is no more is not counted (upstream's set only grows)."""
        tracker.record_usage(0, choices(5))
        tracker.step_end()
        tracker.step_end()
        assert tracker.get_summary()["hot_experts"] == [[0, 5]]
        tracker.record_usage(0, torch.arange(8).expand(2, 3, 1, 8))
        tracker.step_end()
        tracker.step_end()
        assert tracker.get_summary()["hot_experts_count"] == 0

    def test_persistent_hot_experts(self):
        """S2-13: an expert planted in every window is persistent, those of one window are not."""
        rng = np.random.default_rng(0)
        tracker = ExpertUsageTracker(1000, 1, log_freq=1, wandb_enabled=False)
        for window in range(6):
            even = rng.integers(0, 1000, 20_000)
            planted = np.concatenate([even, np.full(1100, 77), np.full(900, 100 + window)])
            tracker.record_usage(0, torch.tensor(planted).reshape(1, -1, 1, 1))
            tracker.step_end()
            (record,) = tracker.latest
            assert record.persistent == (None if window < 4 else 1)
        assert record.persistent_experts == (77,)
        assert record.hot_experts == (77, 105)
        assert record.overlap == pytest.approx(1 / 3)
        assert index_summary([record])["expert_usage/persistent_hot_experts"] == 1.0

    def test_a_recomputation_counts_nothing_twice(self, tracker):
        """Called inside a checkpointed forward, a choice counts once."""

        def forward(x):
            tracker.record_usage(0, choices(1))
            return x * 2

        x = torch.ones(2, requires_grad=True)
        for reentrant in (True, False):
            checkpoint(forward, x, use_reentrant=reentrant).sum().backward()
        tracker.step_end()
        tracker.step_end()
        assert tracker.latest[0].draws == 12


class TestSummary:
    def test_keys(self, tracker):
        """S2-16: the keys of the summary, per layer too."""
        tracker.record_usage(0, choices(1, 2))
        tracker.record_usage(1, choices(1, 2))
        tracker.step_end()
        tracker.step_end()
        assert tracker.get_summary() == {
            "total_tokens_processed": 6,
            "hot_experts_count": 4,
            "hot_experts": [[0, 1], [0, 2], [1, 1], [1, 2]],
            "layer_stats": {
                layer: {"experts_used": 2, "usage_coverage": 25.0, "avg_usage": 1.5}
                for layer in (0, 1)
            },
        }

    def test_tokens_count_once_for_all_layers(self, tracker):
        """S2-16: total_tokens_processed is of the whole run, and not per layer."""
        for _ in range(4):
            tracker.record_usage(0, choices(1))
            tracker.record_usage(1, choices(1))
            tracker.step_end()
        assert tracker.get_summary()["total_tokens_processed"] == 24

    def test_before_the_first_window(self, tracker):
        """S2-16: a summary asked for early is of what was recorded so far."""
        tracker.record_usage(0, choices(1))
        assert tracker.get_summary()["layer_stats"][0]["experts_used"] == 1

    def test_as_json(self, tracker, tmp_path):
        """S2-16: the summary is written as JSON, at any time, in one move."""
        tracker.record_usage(0, choices(1))
        tracker.save_summary(tmp_path / "usage.json")
        found = json.loads((tmp_path / "usage.json").read_text())
        assert found["layer_stats"]["0"]["usage_coverage"] == 12.5
        assert [path.name for path in tmp_path.iterdir()] == ["usage.json"]

    def test_the_same_from_a_run(self, tmp_path):
        """S2-16: moetrace export --format seed002 writes that JSON from the run folder."""
        torch.manual_seed(0)
        model = ProductKeyModel([ProductKeyLayer(), ProductKeyLayer()])
        with moetrace.attach(model, tmp_path / "run", every=1, probes=[IndexProbe()]) as tracer:
            for _ in range(3):
                tracer.on_step_begin()
                model(torch.randn(4, 5, 16)).sum().backward()
                tracer.on_step_end()
        exported = export_run(moetrace.open_run(tmp_path / "run"), tmp_path / "out", form="seed002")
        found = json.loads((tmp_path / "out" / "expert_usage_summary.json").read_text())
        assert exported.rows == {"windows": 3}
        assert found["total_tokens_processed"] == 60
        assert sorted(found["layer_stats"]) == ["0", "1"]
        assert found["layer_stats"]["0"]["avg_usage"] == 160 / 1024

    def test_a_run_without_tables(self, tmp_path):
        """S2-16: the export of a run that counted none says what to ask for."""
        from moetrace.store import RunFolder

        RunFolder.prepare(tmp_path / "run").open_segment(rank=0, header={}).close()
        with pytest.raises(ValueError, match=r"probes=\[moetrace.IndexProbe\(\)\]"):
            export_run(moetrace.open_run(tmp_path / "run"), tmp_path / "out", form="seed002")


class TestLogging:
    def test_no_sink_is_required(self, tracker, monkeypatch):
        """S2-14: without W&B, and with it imported but no run open, nothing is logged."""
        monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=None))
        loud = ExpertUsageTracker(8, 1, log_freq=1)
        loud.record_usage(0, choices(1))
        assert loud.step_end() is True
        loud.close()

    def test_any_sink_will_do(self):
        """S2-14: windows go to whatever moetrace.attach would take."""
        sink = MemorySink()
        tracker = ExpertUsageTracker(8, 1, log_freq=1, wandb_enabled=False, logger=sink)
        tracker.record_usage(0, choices(1))
        tracker.step_end()
        tracker.close()
        (snapshot,) = sink.snapshots
        assert snapshot.metrics()["expert_usage/layer_0_experts_used"] == 1.0

    def test_the_keys_under_other_names(self, monkeypatch):
        """S2-15: alias renames the keys in W&B, and is looked at before the first window."""
        rows = []
        run = types.SimpleNamespace(log=rows.append)
        monkeypatch.setitem(sys.modules, "wandb", module := types.ModuleType("wandb"))
        module.run = run
        tracker = ExpertUsageTracker(8, 1, log_freq=1, alias={"expert_usage": "peer"})
        tracker.record_usage(0, choices(1))
        tracker.step_end()
        tracker.close()
        assert rows[0]["peer/layer_0_coverage"] == 12.5
        assert not any("expert_usage" in key for key in rows[0])
        with pytest.raises(ValueError, match="'expert_usage': ''; give a key"):
            ExpertUsageTracker(8, 1, alias={"expert_usage": ""})
        with pytest.raises(ValueError, match=r"MemorySink\(\.\.\., alias"):
            ExpertUsageTracker(8, 1, logger=MemorySink(), alias={"expert_usage": "peer"})

    def test_an_open_run_of_wandb_gets_the_keys(self, monkeypatch):
        """S2-14, S2-15: with wandb_enabled the run that is open gets a row per window."""
        rows = []

        class Run:
            def log(self, row):
                rows.append(row)

        module = types.ModuleType("wandb")
        module.run = Run()
        module.Image = module.Histogram = lambda *args, **kwargs: "drawn"
        module.Table = lambda **kwargs: kwargs
        monkeypatch.setitem(sys.modules, "wandb", module)
        tracker = ExpertUsageTracker(8, 1, log_freq=1000, usage_threshold=3.0)
        for _ in range(1000):
            tracker.step_end()
        tracker.record_usage(0, choices(1))
        for _ in range(1000):
            tracker.step_end()
        tracker.close()
        first, second = rows
        assert first["expert_usage/hot_experts_count"] == 0.0
        assert second["expert_usage/layer_0_coverage"] == 12.5
        assert second["expert_usage/layer_0_histogram"] == "drawn"
        assert second["expert_usage/top_experts_heatmap"] == "drawn"
        assert second["expert_usage/hot_experts"]["data"] == [[0, 1]]
        assert (second["moe/step"], "step" in second) == (2000, False)


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ((0, 2), "num_experts=0"),
            ((8, 0), "num_layers=0"),
            ((8, 2, 0), "log_freq=0"),
            ((8, 2, 5, 0.0), "usage_threshold=0.0"),
        ],
    )
    def test_numbers_that_make_no_sense(self, arguments, reason):
        """S2-04: what cannot be counted is refused when the tracker is made."""
        with pytest.raises(ValueError, match=reason):
            ExpertUsageTracker(*arguments)

    def test_a_layer_that_is_not_there(self, tracker):
        """A layer's number beyond the last is an error, and not another layer's count."""
        with pytest.raises(IndexError, match="layer 2 of 2"):
            tracker.record_usage(2, choices(1))

    def test_indices_that_do_not_fit_the_tokens(self, tracker):
        """Indices that no number of choices per token explains are refused."""
        with pytest.raises(ValueError, match="6 indices of 4 x 4 tokens"):
            tracker.record_usage(0, choices(1), 4, 4)
