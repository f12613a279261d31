"""Alerts of tables of experts: what is said, when, and that a sound table is left alone."""

import numpy as np

from moetrace.alerts import AlertJudge, AlertRules
from moetrace.index_stats import index_stats_of
from moetrace.snapshot import Snapshot


def window(counts, *, step=1, tokens=None, layer="ffn", **settings):
    """A training window with one table of 1024 experts."""
    counts = np.asarray(counts, np.int64)
    scalars = {"tokens": int(counts.sum()) // 8 if tokens is None else tokens, "calls": 1}
    stats = index_stats_of(layer, counts, columns=32, scalars=scalars, **settings).reduced()
    return Snapshot("run", 0, 0, step - 1, "train", step, step, 0.0, (), indices=(stats,))


def told(judge, *windows):
    """State and kind of the alerts of each window."""
    return [[(a.state, a.kind) for a in judge.judge(item)] for item in windows]


SUMS = np.where(np.arange(1024) < 63, 500, 0)
EVEN = np.random.default_rng(0).poisson(30, 1024)
HOT = np.where(np.arange(1024) == 77, 5000, EVEN)


class TestIndexAlerts:
    def test_the_first_window_names_a_layer_that_adds_its_sub_keys(self):
        """S2-18: what no balance explains is said at once, by the layer's name, with the reason."""
        (alert,) = AlertJudge(AlertRules()).judge(window(SUMS, layer="layers.3.ffn"))
        assert (alert.kind, alert.layer, alert.state) == (
            "unreachable_experts",
            "layers.3.ffn",
            "started",
        )
        assert "no index above 62 of 1,024: structural, not load imbalance" in alert.line

    def test_it_is_over_when_the_layer_is_sound(self):
        """What began ends with the first window that shows otherwise."""
        judge = AlertJudge(AlertRules())
        assert told(judge, window(SUMS), window(SUMS), window(EVEN)) == [
            [("started", "unreachable_experts")],
            [],
            [("ended", "unreachable_experts")],
        ]

    def test_an_even_table_has_no_alert(self):
        """A table that is used as evenly as chance allows is left alone."""
        assert told(AlertJudge(AlertRules()), *[window(EVEN)] * 5) == [[]] * 5

    def test_a_hot_expert_has_to_last(self):
        """S2-10, S2-13: hot experts are those of the window, said after two of them."""
        found = told(AlertJudge(AlertRules()), window(HOT), window(HOT), window(EVEN), window(EVEN))
        assert found == [[], [("started", "hot_experts")], [], [("ended", "hot_experts")]]

    def test_few_draws_make_no_hot_expert(self):
        """S2-03: at one draw per expert some are above 5 times the mean by chance; none is told."""
        counts = np.random.default_rng(1).poisson(1, 1024)
        counts[5] = 6
        assert told(AlertJudge(AlertRules(duration=1)), window(counts)) == [[]]

    def test_each_can_be_switched_off(self):
        """None, or False, switches a condition off."""
        rules = AlertRules(
            unreachable=False,
            dead_sub_keys_threshold=None,
            coverage_threshold=None,
            usage_threshold=None,
            persistence_threshold=None,
            duration=1,
        )
        assert told(AlertJudge(rules), window(SUMS), window(HOT)) == [[], []]

    def test_dead_sub_keys_and_coverage(self):
        """Half of the rows dead, and few experts drawn, are told apart."""
        rng = np.random.default_rng(0)
        rows = rng.poisson(20, (32, 32))
        rows[::2] = 0
        few = np.zeros(1024)
        few[rng.permutation(1024)[:300]] = 60
        assert told(AlertJudge(AlertRules(duration=1)), window(rows.reshape(-1)), window(few)) == [
            [("started", "dead_sub_keys")],
            [("ended", "dead_sub_keys"), ("started", "low_coverage")],
        ]

    def test_a_fault_of_routing_is_said_once(self):
        """A small table whose routing is judged too has one alert for a hot expert, not two."""
        from moetrace.routing_stats import RoutingStats

        counts = HOT.astype(np.int64)
        both = window(HOT)
        routing = RoutingStats(
            "ffn",
            1024,
            1,
            "none",
            counts,
            counts * 0,
            counts * 0,
            tokens=int(counts.sum()),
            calls=1,
        )
        both = Snapshot("run", 0, 0, 0, "train", 1, 1, 0.0, (routing,), indices=both.indices)
        alerts = AlertJudge(AlertRules(duration=1)).judge(both)
        assert [a.kind for a in alerts].count("hot_experts") == 1
