"""The plain rule, every window for itself: the thresholds of the seeds, and their words."""

import pytest

from moetrace.alerts import AlertJudge, AlertRules
from tests.alerts.made import PLAIN, kinds, layer, only, told


def first(rules: AlertRules, *windows):
    """The alerts of the last of these windows."""
    return told(AlertJudge(rules), *windows)[-1]


class TestImbalance:
    def test_above_the_threshold(self) -> None:
        """S1-37: max/mean 4.52 is an alert, in the seeds' words."""
        counts = [452, 78, 78, 78, 78, 78, 79, 79]  # 1000 tokens, mean 125: 452 / 125 = 3.616
        assert "severe_imbalance" not in kinds(first(PLAIN, layer(counts)))
        counts = [565, 62, 62, 62, 62, 62, 62, 63]  # 565 / 125 = 4.52
        (alert,) = (a for a in first(PLAIN, layer(counts)) if a.kind == "severe_imbalance")
        assert alert.message == "layers.0.mlp: Severe expert imbalance (ratio: 4.52)"
        assert (alert.value, alert.threshold, alert.floor) == (4.52, 4.0, 1.0)

    def test_exactly_at_the_threshold_is_silent(self) -> None:
        """S1-20: four times the mean does not exceed four times the mean."""
        counts = [500, 72, 72, 72, 71, 71, 71, 71]
        assert sum(counts) == 1000
        assert "severe_imbalance" not in kinds(first(PLAIN, layer(counts)))

    def test_s1_26_a_planted_imbalance_is_found(self) -> None:
        """S1-26: tokens that crowd onto one expert are told of, by layer."""
        alerts = first(PLAIN, [layer([1, 1, 1, 1], name="a"), layer([80, 1, 1, 1, 1, 1], name="b")])
        assert {alert.layer for alert in alerts} == {"b"}


class TestUnusedExperts:
    def test_a_quarter_of_the_experts_is_enough(self) -> None:
        """S1-21: exactly 2 of 8 is an alert."""
        (alert,) = first(PLAIN, layer([5, 5, 5, 5, 5, 5, 0, 0]))
        assert alert.message == "layers.0.mlp: 2/8 experts unused"
        assert (alert.kind, alert.value) == ("unused_experts", 0.25)

    def test_three_of_eight(self) -> None:
        """S1-38: in the seeds' words."""
        (alert,) = first(PLAIN, layer([5, 5, 5, 5, 5, 0, 0, 0]))
        assert alert.message == "layers.0.mlp: 3/8 experts unused"

    def test_fewer_are_silent(self) -> None:
        """S1-21: 1 of 8 is below a quarter."""
        assert first(PLAIN, layer([5, 5, 5, 5, 5, 5, 5, 0])) == []


class TestEntropy:
    def test_below_the_threshold(self) -> None:
        """S1-39, S1-27: a router that is certain of every token is told of, in nats."""
        (alert,) = first(PLAIN, layer([5, 5, 5, 5], entropy=0.0312))
        assert alert.message == "layers.0.mlp: Low routing entropy (0.0312)"
        assert alert.kind == "low_entropy"

    def test_exactly_at_the_threshold_is_silent(self) -> None:
        """S1-22: 0.125 nats are not below 0.125 nats."""
        rules = AlertRules(above_floor=False, duration=1, entropy_threshold=0.125)
        assert first(rules, layer([5, 5, 5, 5], entropy=0.125)) == []
        assert kinds(first(rules, layer([5, 5, 5, 5], entropy=0.124))) == {"low_entropy"}

    def test_a_router_without_logits_has_none(self) -> None:
        """Sums that mean nothing are no entropy of 0."""
        assert first(PLAIN, layer([5, 5, 5, 5], entropy=0.0, scoring="none")) == []


class TestHotExperts:
    def test_names_the_experts(self) -> None:
        """An expert above five times the mean load is named with its load."""
        alerts = first(PLAIN, layer([6, 0, 1, 1, 0, 0, 88, 4]))
        (alert,) = (item for item in alerts if item.kind == "hot_experts")
        assert alert.message == "layers.0.mlp: 1 hot expert (expert 6 at 7.04 times the mean load)"

    def test_many_are_counted(self) -> None:
        """Three are named, the hottest first; the rest are a number."""
        counts = [10, 11, 12, 13, *[0] * 36]
        alerts = first(PLAIN, layer(counts))
        (alert,) = (item for item in alerts if item.kind == "hot_experts")
        assert alert.message == (
            "layers.0.mlp: 4 hot experts (expert 3 at 11.30, expert 2 at 10.43, expert 1 at 9.57 "
            "and 1 more times the mean load)"
        )

    def test_exactly_five_times_is_silent(self) -> None:
        """Seed 002: an expert is hot above ``usage_threshold`` times the mean."""
        counts = [50, *[5] * 10]  # 100 assignments over 11 experts: mean 100 / 11
        assert "hot_experts" in kinds(first(PLAIN, layer(counts)))
        counts = [50, 6, 6, 6, 6, 6, 5, 5, 5, 5]  # mean 10
        assert "hot_experts" not in kinds(first(PLAIN, layer(counts)))

    def test_persistent_where_the_same_expert_stays_hot(self) -> None:
        """The same expert in four of five windows; windows before the fifth are no history."""
        hot, even = layer([93, 1, 1, 1, 1, 1, 1, 1]), layer([12, 12, 12, 13, 13, 13, 13, 12])
        found = told(AlertJudge(PLAIN), hot, hot, even, hot, hot)
        assert only("persistent_hot_experts", found) == [("started", 50)]
        (alert,) = (item for item in found[-1] if item.kind == "persistent_hot_experts")
        assert alert.message == (
            "layers.0.mlp: 1 persistent hot expert (expert 0 in 4 of 5 windows)"
        )

    def test_a_rotating_hot_expert_is_not_persistent(self) -> None:
        """Another expert in every window is hot, and none of them persistently."""
        rows = [[1] * 8 for _ in range(12)]
        for number, row in enumerate(rows):
            row[number % 8] = 93
        found = told(AlertJudge(PLAIN), *(layer(row) for row in rows))
        assert only("hot_experts", found) == [("started", 10)]
        assert only("persistent_hot_experts", found) == []


class TestCollapse:
    def test_nearly_everything_on_the_same_k_experts(self) -> None:
        """Two of eight experts take 96 % where even would be 25 %: 95 % of the way."""
        alerts = first(PLAIN, layer([48, 48, 1, 1, 1, 1, 0, 0], top_k=2))
        (alert,) = (item for item in alerts if item.kind == "routing_collapse")
        assert alert.message == (
            "layers.0.mlp: Routing collapse (96.0% of the assignments on 2 of 8 experts: 0, 1)"
        )
        assert alert.threshold == 0.25 + 0.75 * 0.9

    @pytest.mark.parametrize(
        ("counts", "top_k", "named"),
        [
            ([0, 1, 0, 98, 1, 0, 0], 1, "98.0%... on 1 of 7 experts: 3"),
            ([0, 25, 24, 0, 27, 24, 0, 0], 4, "100.0%... on 4 of 8 experts: 4, 1, 2 and 1 more"),
        ],
    )
    def test_names_the_experts_that_take_it_the_busiest_first(
        self, counts: list[int], top_k: int, named: str
    ) -> None:
        """Three by their numbers, of more how many; of one that it is one."""
        alerts = first(PLAIN, layer(counts, top_k=top_k))
        (alert,) = (item for item in alerts if item.kind == "routing_collapse")
        text = named.replace("...", " of the assignments")
        assert alert.message == f"layers.0.mlp: Routing collapse ({text})"

    def test_a_router_that_takes_all_experts_cannot_collapse(self) -> None:
        """With K = E the same K experts are all there are."""
        assert first(PLAIN, layer([9, 9], top_k=2)) == []


class TestLoadBalancingLoss:
    def test_abnormally_high(self) -> None:
        """S1-29, S1-40: load and probability on one expert of eight, loss 8 * 0.7 * 0.7 + ..."""
        even = [0.3 / 7] * 7
        alerts = first(PLAIN, layer([70, 4, 4, 4, 4, 4, 5, 5], probability=[0.7, *even]))
        (alert,) = (item for item in alerts if item.kind == "load_balancing_loss_high")
        # 8 * (0.7 * 0.7 + 0.3 * 0.3 / 7) = 4.0229
        assert alert.message == "layers.0.mlp: Load-balancing loss abnormally high (4.0229)"

    def test_a_full_collapse_of_few_experts_is_high_too(self) -> None:
        """S1-40: with 2 of 4 experts the loss cannot exceed 2; half the way, 1.5, is high."""
        alerts = first(PLAIN, layer([50, 50, 0, 0], top_k=2, probability=[0.5, 0.5, 0, 0]))
        (alert,) = (item for item in alerts if item.kind == "load_balancing_loss_high")
        assert (alert.value, alert.threshold) == (2.0, 1.5)

    def test_gone_to_zero(self) -> None:
        """S1-29, S1-40: load where the router has no probability: the loss pulls at nothing."""
        alerts = first(PLAIN, layer([50, 50, 0, 0], probability=[0.01, 0.01, 0.49, 0.49]))
        (alert,) = (a for a in alerts if a.kind == "load_balancing_loss_zero")
        assert alert.message == "layers.0.mlp: Load-balancing loss gone to zero (0.0400)"

    def test_a_healthy_loss_is_silent(self) -> None:
        """1 is a uniform router."""
        assert first(PLAIN, layer([25, 25, 25, 25])) == []


class TestTheRest:
    def test_dropped_tokens(self) -> None:
        """More than 5 % of the assignments; exactly 5 % is silent."""
        assert first(PLAIN, layer([19, 19, 19, 19, 19], dropped=5)) == []
        (alert,) = first(PLAIN, layer([18, 19, 19, 19, 19], dropped=6))
        assert alert.message == "layers.0.mlp: 6.0% of the assignments dropped"

    def test_nonfinite_logits_at_the_first_one(self) -> None:
        """One token is enough, at once, whatever the duration."""
        rules = AlertRules(above_floor=False, duration=3)
        (alert,) = first(rules, layer([2, 2, 2, 2], nonfinite=1))
        assert alert.message == "layers.0.mlp: 1 of 8 tokens with NaN or infinite logits"

    def test_a_silent_router_beside_others(self) -> None:
        """A router that is not called while another one is."""
        (alert,) = first(PLAIN, [layer([2, 2], name="a"), layer([0, 0], name="b", calls=0)])
        assert alert.message == "b: router not called while others are"

    def test_a_model_that_does_not_run_is_not_silent(self) -> None:
        """Where no router was called there is nothing to tell."""
        assert first(PLAIN, [layer([0, 0], calls=0), layer([0, 0], name="b", calls=0)]) == []

    def test_a_frozen_router(self) -> None:
        """Five windows in a row with identical counts and identical sums of scores."""
        same = layer([3, 2, 2, 1])
        found = told(AlertJudge(PLAIN), *[same] * 6, layer([2, 2, 2, 2]))
        assert only("frozen_router", found) == [("started", 50), ("ended", 70)]
        (alert,) = (item for item in found[4] if item.kind == "frozen_router")
        assert alert.message == "layers.0.mlp: Frozen router (identical counts in 5 windows)"

    def test_a_router_that_still_learns_is_not_frozen(self) -> None:
        """The same choices with scores that move are a router that is sure."""
        rows = [layer([3, 2, 2, 1], entropy=1.0 + step / 100) for step in range(8)]
        assert only("frozen_router", told(AlertJudge(PLAIN), *rows)) == []

    def test_a_router_balanced_by_force_is_not_frozen(self) -> None:
        """Expert choice and capacity limits fill every expert alike in every window."""
        assert told(AlertJudge(PLAIN), *[layer([2, 2, 2, 1])] * 8)[-1] == []

    @pytest.mark.parametrize(
        ("name", "sick"),
        [
            ("alert_threshold_imbalance", layer([93, 1, 1, 1, 1, 1, 1, 1])),
            ("unused_expert_threshold", layer([5, 5, 0, 0])),
            ("entropy_threshold", layer([5, 5, 5, 5], entropy=0.0)),
            ("usage_threshold", layer([93, 1, 1, 1, 1, 1, 1, 1])),
            ("collapse_threshold", layer([99, 1, 0, 0])),
            ("load_balancing_loss_threshold", layer([99, 1, 0, 0])),
            ("load_balancing_loss_zero", layer([9, 9, 0, 0], probability=[0.0, 0.0, 0.5, 0.5])),
            ("dropped_threshold", layer([5, 5, 5, 5], dropped=5)),
        ],
    )
    def test_each_can_be_switched_off(self, name: str, sick) -> None:
        """None takes away exactly the alerts of that threshold."""
        loud = kinds(first(PLAIN, sick))
        quiet = kinds(first(AlertRules(above_floor=False, duration=1, **{name: None}), sick))
        assert quiet < loud

    def test_a_router_whose_k_varies_is_judged_by_its_load(self) -> None:
        """Tokens that choose different numbers of experts have a balance, and no load in E / K."""
        from dataclasses import replace

        varying = replace(layer([93, 1, 1, 1, 1, 1, 1, 1]), top_k=0, tokens=96)
        assert kinds(first(PLAIN, varying)) == {"severe_imbalance", "hot_experts"}
        assert kinds(first(AlertRules(duration=1), varying)) == {"severe_imbalance", "hot_experts"}
        chance = replace(layer([2, 0, 0, 0, 0, 0, 0, 1]), top_k=0, tokens=2)
        assert first(AlertRules(duration=1), chance) == []

    def test_counts_that_contradict_each_other_are_not_judged(self) -> None:
        """A balance that is withheld raises nothing; what the logits say still stands."""
        from dataclasses import replace

        broken = replace(layer([93, 1, 1, 1, 1, 1, 1, 1]), tokens=101)
        assert first(PLAIN, broken) == []
