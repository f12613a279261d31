"""The metrics of a snapshot: which there are, and which are withheld and why."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.layout import FRACTION_BITS
from moetrace.metrics import METRICS
from moetrace.metrics.window import SCORES
from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot, merge

ALL_SCORES = (*SCORES, "micro_load_balancing_loss")
FLOORED = ("load_cv", "max_vio", "avg_vio", "load_gini", "dead_experts")


def fixed(name, real):
    """A real number, or a list of them, in the fixed point of a sum."""
    return np.round(np.array(real) * 2.0 ** FRACTION_BITS[name]).astype(np.int64)


def layer(counts, *, tokens, name="layers.0.mlp", top_k=1, prob=None, **fields):
    """One layer; every token has probability ``prob`` (uniform unless given)."""
    experts = len(counts)
    scored = tokens - fields.get("nonfinite", 0)
    prob = [1 / experts] * experts if prob is None else prob
    reals = {
        key: int(fixed(key, value)) if key in FRACTION_BITS else value
        for key, value in fields.items()
    }
    return RoutingStats(
        layer=name,
        num_experts=experts,
        top_k=top_k,
        scoring=reals.pop("scoring", "softmax"),
        tokens_per_expert=np.array(counts),
        prob_sum=fixed("prob_sum", [p * scored for p in prob]),
        gate_weight_sum=np.zeros(experts, np.int64),
        tokens=tokens,
        calls=reals.pop("calls", 1),
        **reals,
    )


def snapshot(*layers):
    """A snapshot of one step."""
    return Snapshot("run", 0, 0, 0, "train", 1, 1, 0.0, tuple(layers))


class TestMetrics:
    def test_a_layer_by_hand(self):
        """8 tokens, all on the first of 8 experts, with half of the probability there."""
        stats = layer(
            [8, 0, 0, 0, 0, 0, 0, 0],
            tokens=8,
            prob=[0.5, 0.5, 0, 0, 0, 0, 0, 0],
            entropy_sum=8 * math.log(2),
            confidence_sum=4.0,
            margin_sum=16.0,
            lse_sq_sum=2.0,
        )
        found = stats.metrics()
        assert found["load_cv"] == pytest.approx(math.sqrt(7))
        assert found["max_vio"] == 7.0
        assert found["dead_experts"] == 7.0
        assert found["routing_entropy"] == pytest.approx(math.log(2), abs=1e-7)
        assert found["routing_entropy_normalized"] == pytest.approx(1 / 3, abs=1e-7)
        assert found["confidence"] == 0.5
        assert found["margin"] == 2.0
        assert found["load_balancing_loss"] == pytest.approx(4.0)
        assert found["z_loss"] == 0.25

    @pytest.mark.parametrize("name", FLOORED)
    def test_the_excess_is_what_is_over_the_floor(self, name):
        """Metric minus the floor of a uniform router of this size."""
        found = layer([9, 5, 2, 0], tokens=8, top_k=2).metrics()
        assert found[f"{name}_excess"] == found[name] - found[f"{name}_floor"]
        assert found[f"{name}_floor"] > 0

    def test_no_floor_is_left_out(self):
        """Every metric that has a floor has an excess, and the tests know all of them."""
        floored = {name.removesuffix("_floor") for name in METRICS if name.endswith("_floor")}
        assert floored == set(FLOORED)
        assert {f"{name}_excess" for name in floored} < set(METRICS)

    def test_the_loss_of_a_uniform_router_is_one_for_top_2(self):
        """Load shares are over tokens * top_k, so that 1 means balanced for every K."""
        assert layer([4, 4, 4, 4], tokens=8, top_k=2).metrics()["load_balancing_loss"] == 1.0

    def test_merged_windows_are_divided_after_adding(self):
        """Two windows that collapse on one expert each are, together, even."""
        first, second = layer([4, 0], tokens=4), layer([0, 4], tokens=4)
        assert first.metrics()["load_cv"] == second.metrics()["load_cv"] == 1.0
        both = merge([snapshot(first), snapshot(second)]).routing[0]
        assert both.metrics()["load_cv"] == 0.0

    @given(
        st.lists(st.integers(-3, 50), min_size=1, max_size=6),
        st.integers(0, 60),
        st.integers(0, 7),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 70),
        st.sampled_from(["softmax", "sigmoid", "none"]),
    )
    def test_whatever_was_counted(
        self, counts, tokens, top_k, out_of_range, dropped, nonfinite, scoring
    ):
        """For any record, even a broken one: every key, no NaN, and a reason for each None."""
        stats = layer(
            counts,
            tokens=tokens,
            top_k=top_k,
            out_of_range=out_of_range,
            dropped=dropped,
            nonfinite=nonfinite,
            scoring=scoring,
        )
        found = stats.metrics()
        assert tuple(found) == METRICS
        assert all(value is None or math.isfinite(value) for value in found.values())
        assert all(type(value) is float for value in found.values() if value is not None)
        assert set(stats.withheld()) == {name for name, value in found.items() if value is None}
        assert all(stats.withheld().values())


class TestWithheld:
    def test_a_whole_window_has_every_metric(self):
        """Where nothing is wrong nothing is withheld."""
        assert layer([3, 1], tokens=4).withheld() == {}

    def test_nothing_was_routed(self):
        """An empty window has no metric at all, and says so."""
        reasons = layer([0, 0], tokens=0).withheld()
        assert set(reasons) == set(METRICS)
        assert set(reasons.values()) == {"nothing was routed"}

    def test_counts_that_do_not_add_up(self):
        """Counts that miss tokens * top_k take balance and floors with them, not the scores."""
        stats = layer([3, 1], tokens=5)
        reason = "found 4 assignments where tokens * top_k is 5"
        kept = set(SCORES) - {"load_balancing_loss"}
        assert set(stats.withheld()) == set(METRICS) - kept
        assert set(stats.withheld().values()) == {reason}

    def test_counts_after_dropping(self):
        """With a capacity limit the counts may be short; then only the floors are withheld."""
        stats = layer([3, 1], tokens=5, dropped=1)
        withheld = {f"{name}_{part}" for name in FLOORED for part in ("floor", "excess")}
        assert set(stats.withheld()) == withheld
        assert "after dropping" in stats.withheld()["max_vio_floor"]

    def test_counts_before_dropping(self):
        """Where assignments were dropped but all were counted, nothing is withheld."""
        assert layer([4, 1], tokens=5, dropped=1).withheld() == {}

    def test_out_of_range(self):
        """Assignments to no expert leave the balance of the others, and no floor to compare."""
        stats = layer([3, 1], tokens=5, out_of_range=1)
        assert stats.metrics()["load_imbalance"] == 1.5
        assert "do not exist" in stats.withheld()["max_vio_excess"]

    def test_a_router_without_logits(self):
        """Without logits the sums of reals are 0 and mean nothing: no score is shown."""
        stats = layer([3, 1], tokens=4, scoring="none")
        assert stats.withheld() == dict.fromkeys(ALL_SCORES, "the router shows no logits")

    def test_only_bad_logits(self):
        """Where every token had NaN logits the balance stands and the scores do not."""
        stats = layer([3, 1], tokens=4, nonfinite=4)
        assert set(stats.withheld()) == set(ALL_SCORES)
        assert stats.withheld()["z_loss"] == "the logits of all 4 tokens are NaN or infinite"

    def test_more_bad_logits_than_tokens(self):
        """A record that contradicts itself gives no score: the mean would have no sense."""
        stats = layer([3, 1], tokens=4, nonfinite=5)
        assert stats.withheld()["z_loss"] == "found more tokens with bad logits than the 4 routed"

    def test_probabilities_that_do_not_add_up(self):
        """A token's probabilities add up to 1; where they do not, no score is to be trusted."""
        stats = layer([3, 1], tokens=4, prob=[0.5, 0.4])
        assert "add up to 0.9000" in stats.withheld()["routing_entropy"]
        assert set(stats.withheld()) == set(ALL_SCORES)

    def test_every_expert_chosen(self):
        """With K = E no logit is left unchosen, so there is no margin."""
        stats = layer([4, 4], tokens=4, top_k=2)
        assert set(stats.withheld()) == {"margin"}

    def test_a_single_expert(self):
        """For one expert ln E is 0, and what is divided by it is undefined."""
        assert set(layer([4], tokens=4).withheld()) == {
            "margin",
            "load_entropy_normalized",
            "routing_entropy_normalized",
        }

    def test_scores_leave_bad_tokens_out(self):
        """A mean of scores is over the tokens that were scored, not over all."""
        stats = layer([3, 1], tokens=4, nonfinite=2, confidence_sum=1.0)
        assert stats.metrics()["confidence"] == 0.5


class TestSummary:
    def test_means_worst_and_totals(self):
        """Means are over layers, unweighted; the worst is the highest; dead experts add up."""
        found = snapshot(
            layer([3, 1], tokens=4, name="a", entropy_sum=4 * 0.5),
            layer([800, 0], tokens=800, name="b", entropy_sum=800 * 0.25),
        ).metrics()
        assert found["moe/avg_expert_cv"] == 0.75
        assert found["moe/avg_max_vio"] == 0.75
        assert found["moe/p90_max_vio"] == pytest.approx(0.95)
        assert found["moe/worst_max_vio"] == 1.0
        second = layer([800, 0], tokens=800).metrics()
        assert found["moe/worst_max_vio_excess"] == second["max_vio_excess"]
        assert found["moe/dead_experts_window"] == 1.0
        assert found["moe/avg_routing_entropy"] == 0.375
        assert found["moe/lowest_routing_entropy"] == 0.25

    def test_the_keys(self):
        """13 keys, whatever the number of layers; the seeds' names among them."""
        layers = [layer([3, 1], tokens=4, name=f"layers.{index}") for index in range(48)]
        assert list(snapshot(*layers).metrics()) == [
            "moe/avg_expert_cv",
            "moe/avg_expert_cv_excess",
            "moe/avg_max_vio",
            "moe/p90_max_vio",
            "moe/worst_max_vio",
            "moe/worst_max_vio_excess",
            "moe/dead_experts_window",
            "moe/avg_routing_entropy",
            "moe/lowest_routing_entropy",
            "moe/avg_load_balancing_loss",
            "moe/avg_z_loss",
            "moe/dropped_assignments",
            "moe/nonfinite_tokens",
        ]

    def test_no_layer_with_probabilities(self):
        """A key that no layer has a number for is absent: not NaN and not 0."""
        found = snapshot(layer([3, 1], tokens=4, scoring="none")).metrics()
        assert "moe/avg_expert_cv" in found
        assert not [key for key in found if "entropy" in key or "loss" in key]

    def test_layers_without_a_metric_do_not_dilute_the_mean(self):
        """The mean is over the layers that have the metric."""
        found = snapshot(
            layer([3, 1], tokens=4, name="a", scoring="none"),
            layer([3, 1], tokens=4, name="b", entropy_sum=2.0),
        ).metrics()
        assert found["moe/avg_routing_entropy"] == 0.5

    def test_what_went_wrong_is_counted(self):
        """Dropped assignments and tokens with bad logits add up over the layers."""
        found = snapshot(
            layer([3, 1], tokens=4, name="a", dropped=2),
            layer([3, 1], tokens=4, name="b", nonfinite=3),
        ).metrics()
        assert found["moe/dropped_assignments"] == 2.0
        assert found["moe/nonfinite_tokens"] == 3.0

    def test_per_layer_on_request(self):
        """Per-layer detail is asked for, under the layer's own name."""
        window = snapshot(layer([3, 0], tokens=3, name="layers.0.mlp", entropy_sum=1.5))
        detail = {
            key: value for key, value in window.metrics(per_layer=True).items() if "layers" in key
        }
        assert detail == {
            "moe/layers.0.mlp/expert_cv": 1.0,
            "moe/layers.0.mlp/max_usage_ratio": 2.0,
            "moe/layers.0.mlp/unused_experts": 1.0,
            "moe/layers.0.mlp/active_experts": 1.0,
            "moe/layers.0.mlp/routing_entropy": 0.5,
        }


class TestSpread:
    def test_names_the_worst_layer(self):
        """A metric over the layers says where to look."""
        window = snapshot(layer([2, 2], tokens=4, name="a"), layer([4, 0], tokens=4, name="b"))
        assert window.spread("max_vio").worst_layer == "b"
        assert window.spread("load_entropy", worst="lowest").worst_layer == "b"

    def test_an_unknown_metric(self):
        """A name that is no metric is answered with those that are."""
        with pytest.raises(KeyError, match="max_vio_excess"):
            snapshot(layer([2, 2], tokens=4)).spread("maxvio")


class TestMicroBatch:
    def test_a_window_of_one_forward_is_a_micro_batch(self):
        """A micro-batch's figure has a name of its own, and the window's value where it is one."""
        found = layer([3, 1], tokens=4, prob=[0.75, 0.25]).metrics()
        assert found["micro_max_vio"] == found["max_vio"] == 0.5
        assert found["micro_load_balancing_loss"] == found["load_balancing_loss"] == 1.25

    def test_of_more_forwards_it_is_withheld(self):
        """Two micro-batches added are a window, whose figure is another one."""
        one, two = layer([3, 1], tokens=4), layer([1, 3], tokens=4)
        merged = merge([snapshot(one), snapshot(two)])["layers.0.mlp"]
        assert merged.metrics()["max_vio"] == 0.0
        assert merged.metrics()["micro_max_vio"] is None
        assert merged.withheld()["micro_max_vio"].startswith("found 2 forwards")

    @given(st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any), st.integers(1, 6))
    def test_a_window_is_no_worse_than_its_micro_batches(self, counts, turns):
        """MaxVio of the sum is at most the mean of the parts, for parts of the same size."""
        parts = [layer(np.roll(counts, turn).tolist(), tokens=sum(counts)) for turn in range(turns)]
        whole = merge([snapshot(part) for part in parts])["layers.0.mlp"].metrics()["max_vio"]
        micro = [part.metrics()["micro_max_vio"] for part in parts]
        assert whole <= sum(micro) / len(micro) + 1e-12
