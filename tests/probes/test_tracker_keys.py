"""What trackers are shown of router weights and gradients: few keys, whatever the model."""

import copy

import pytest

import moetrace
from moetrace.gradient_stats import norm_of
from moetrace.sinks import MemorySink
from moetrace.sinks.charts import BUDGET, Charts
from tests.probes.test_gradients import backward
from tests.tiny import seeded


@pytest.fixture(scope="module")
def windows():
    """Two windows of one step each, with both probes."""
    model, sink = copy.deepcopy(seeded("Qwen3Moe")), MemorySink()
    probes = [moetrace.WeightProbe(), moetrace.GradientProbe()]
    with moetrace.attach(model, every=1, sinks=[sink], probes=probes) as tracer:
        for step in range(2):
            tracer.on_step_begin()
            backward(model, step)
            tracer.on_gradients()
            for parameter in model.parameters():
                parameter.data.sub_(0.1 * parameter.grad)
                parameter.grad = None
            tracer.on_step_end()
    return sink.snapshots


class TestKeys:
    def test_are_the_figures_of_the_records(self, windows):
        """S0-17, S3-32: the totals of the last window, formed from its records by hand."""
        last = windows[-1]
        shown = Charts(per_layer=False, heatmap_every=None).scalars(last)
        assert shown["grad_norm/total"] == norm_of(last.gradients)
        experts = [record for record in last.gradients if record.group == "experts"]
        assert shown["grad_norm/experts"] == norm_of(experts)
        assert shown["grad_norm/nonfinite_steps"] == 0.0
        ratios = [record.update_ratio for record in last.weights]
        assert shown["router_weight/max_update_ratio"] == max(ratios)
        assert shown["router_weight/min_update_ratio"] == min(ratios)
        assert shown["router_weight/nonfinite"] == 0.0

    def test_stay_in_the_budget(self, windows):
        """Nine of gradients and five of weights at most, beside those of routing."""
        shown = Charts(per_layer=False, heatmap_every=None).scalars(windows[-1])
        kinds = [key.partition("/")[0] for key in shown]
        assert kinds.count("grad_norm") == 8
        assert kinds.count("router_weight") == 5
        assert len(shown) <= BUDGET

    def test_per_layer_on_demand(self, windows):
        """Each block's group and each tensor have keys of their own where detail is asked for."""
        shown = Charts(per_layer=True, heatmap_every=None).scalars(windows[-1])
        assert "grad_norm/model.layers.1/attention" in shown
        assert "router_weight/model.layers.0.mlp/weight/drift" in shown

    def test_are_absent_without_the_probes(self):
        """A run without them has no such key."""
        model, sink = copy.deepcopy(seeded("Qwen3Moe")), MemorySink()
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            backward(model, 0)
            tracer.on_step_end()
        assert not any("grad" in key or "weight/" in key for key in sink.snapshots[0].metrics())
