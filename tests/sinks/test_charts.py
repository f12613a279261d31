import numpy as np
import pytest

from moetrace.sinks.charts import BUDGET, Charts, Histogram
from moetrace.snapshot import Snapshot
from tests.report.made import stats, window


def charts(*, per_layer: bool = False, heatmap_every: int | None = None) -> Charts:
    """Charts that draw nothing unless told to."""
    return Charts(per_layer=per_layer, heatmap_every=heatmap_every)


class TestScalars:
    def test_are_the_summary_under_the_seeds_names(self) -> None:
        """S1-07, S1-30, S1-31: a tracker's keys are those of `Snapshot.metrics`."""
        snapshot = window(1, 10, stats("mlp", [3, 1], entropy=0.5))
        found = charts().scalars(snapshot)
        assert found == snapshot.metrics()
        assert (found["moe/avg_expert_cv"], found["moe/avg_routing_entropy"]) == (0.5, 0.5)

    def test_stay_within_the_budget_whatever_the_model(self) -> None:
        """J16: 200 layers of 512 experts and a health full of numbers are at most 64 keys."""
        layers = [stats(f"layers.{index}.mlp", [2] * 512) for index in range(200)]
        snapshot = window(1, 10, *layers)
        snapshot = Snapshot.from_dict(
            {**snapshot.to_dict(), "health": {f"number_{index}": index for index in range(500)}}
        )
        assert len(charts().scalars(snapshot)) <= BUDGET

    def test_detail_per_layer_is_at_most_32_keys_a_layer(self) -> None:
        """J16, S1-33: per layer on request, never per expert."""
        layers = [stats(f"layers.{index}.mlp", [2] * 512) for index in range(20)]
        found = charts(per_layer=True).scalars(window(1, 10, *layers))
        assert found["moe/layers.7.mlp/expert_cv"] == 0.0
        assert len(found) <= BUDGET + 32 * 20

    def test_another_phase_stands_before_its_keys(self) -> None:
        """Evaluation never lands in the curves of training."""
        found = charts().scalars(window(10, 10, stats("mlp", [3, 1]), phase="eval"))
        assert found["eval/moe/avg_expert_cv"] == 0.5
        assert all(key.startswith("eval/") for key in found)

    def test_hostile_names_stay_apart(self) -> None:
        """J13: two layers whose names a tracker would fold into one keep their own curves."""
        layers = [stats("layers[0]", [3, 1]), stats("layers 0", [2, 2]), stats("layers_0", [4, 0])]
        found = charts(per_layer=True).scalars(window(1, 1, *layers))
        assert [found[key] for key in sorted(found) if key.endswith("max_usage_ratio")] == [
            1.0,
            1.5,
            2.0,
        ]

    def test_the_tracers_own_state_goes_along(self) -> None:
        """Numbers of ``health`` are shown; words and infinities are not."""
        snapshot = window(1, 1, stats("mlp", [3, 1]))
        health = {"coalesced_windows": 2, "note": "text", "bad": float("inf"), "yes": True}
        snapshot = Snapshot.from_dict({**snapshot.to_dict(), "health": health})
        shown = {k: v for k, v in charts().scalars(snapshot).items() if "health" in k}
        assert shown == {"moe_health/coalesced_windows": 2.0}


class TestPictures:
    def test_are_due_where_the_step_passes_a_multiple(self) -> None:
        """S1-19: every 500 steps, also where the windows end elsewhere."""
        chart = charts(heatmap_every=500)
        spans = [(1, 300), (301, 600), (601, 900), (901, 999), (1000, 1000), (1001, 2600)]
        due = [last for first, last in spans if chart.note(window(first, last, stats("m", [1, 1])))]
        assert due == [600, 1000, 2600]

    def test_a_resumed_run_does_not_start_with_one(self) -> None:
        """Steps before the first window are not steps that passed."""
        assert not charts(heatmap_every=500).note(window(1201, 1210, stats("m", [1, 1])))

    def test_evaluation_draws_none(self) -> None:
        """Pictures are of the training; an evaluation at step 500 is no reason for one."""
        chart = charts(heatmap_every=500)
        assert not chart.note(window(500, 500, stats("m", [1, 1]), phase="eval"))

    def test_none_draws_none(self) -> None:
        """``heatmap_every=None`` switches them off."""
        assert not charts().note(window(1, 10**6, stats("m", [1, 1])))

    @pytest.mark.parametrize("every", [0, -5])
    def test_a_span_below_one_step_is_refused(self, every: int) -> None:
        """A mistake shows where it was made."""
        with pytest.raises(ValueError, match="found heatmap_every="):
            charts(heatmap_every=every)

    def test_a_layers_picture_has_experts_down_and_windows_across(self) -> None:
        """S1-34: each column is a window's load share and adds up to 1."""
        chart = charts(per_layer=True, heatmap_every=10)
        chart.note(window(1, 5, stats("mlp", [3, 1, 0])))
        last = window(6, 10, stats("mlp", [1, 1, 2]))
        assert chart.note(last)
        assert chart.columns("mlp").tolist() == [[0.75, 0.25], [0.25, 0.25], [0.0, 0.5]]
        images = chart.images(last)
        assert list(images) == ["moe/usage_heatmap", "moe/mlp/usage_heatmap"]
        assert images["moe/mlp/usage_heatmap"].shape == (3 * 32, 2 * 32, 3)
        assert images["moe/usage_heatmap"].shape == (1 * 32, 3 * 32, 3)

    def test_memory_does_not_grow_with_the_run(self) -> None:
        """S1-25: the last 256 windows are kept."""
        chart = charts(per_layer=True, heatmap_every=10)
        for step in range(1, 400):
            chart.note(window(step, step, stats("mlp", [step, 1])))
        columns = chart.columns("mlp")
        assert columns.shape == (2, 256)
        assert columns[0, -1] == np.float32(399 / 400)

    def test_without_detail_nothing_is_kept(self) -> None:
        """One picture of all layers needs the last window only."""
        chart = charts(heatmap_every=10)
        last = window(1, 10, stats("a", [3, 1]), stats("b", [1, 1, 1]))
        assert chart.note(last)
        assert chart.images(last)["moe/usage_heatmap"].shape == (64, 96, 3)


class TestHistograms:
    def test_count_the_experts_of_all_layers_by_load(self) -> None:
        """Two layers of 2 experts are 4 experts; a load of 1.5 stands between 1.5 and 1.5625."""
        found = charts().histograms(window(1, 1, stats("a", [3, 1]), stats("b", [2, 2])))
        (histogram,) = found.values()
        assert list(found) == ["moe/expert_utilisation"]
        assert histogram.counts.sum() == 4
        assert histogram.counts[np.searchsorted(histogram.edges, 1.5)] == 1

    def test_show_tokens_by_expert_where_asked(self) -> None:
        """A layer's histogram has the expert's number on its axis."""
        found = charts(per_layer=True).histograms(window(1, 1, stats("mlp", [3, 1])))
        histogram = found["moe/mlp/tokens_per_expert"]
        assert (histogram.counts.tolist(), histogram.edges.tolist()) == ([3, 1], [0.0, 1.0, 2.0])

    def test_never_have_more_bins_than_trackers_take(self) -> None:
        """W&B refuses 513 bins; neighbours share one, and no assignment is lost."""
        counts = list(range(1200))
        found = charts(per_layer=True).histograms(window(1, 1, stats("mlp", counts)))
        histogram: Histogram = found["moe/mlp/tokens_per_expert"]
        assert len(histogram.counts) == 400
        assert histogram.counts.sum() == sum(counts)
        assert histogram.edges[-1] == 1200

    def test_nothing_routed_has_none(self) -> None:
        """An empty window has no load to show."""
        assert charts(per_layer=True).histograms(window(1, 1, stats("mlp", [0, 0]))) == {}
