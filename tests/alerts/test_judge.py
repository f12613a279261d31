import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.alerts import KINDS, AlertJudge, AlertRules
from tests.alerts.made import PLAIN, at, kinds, layer, only, told

HOT = layer([830, 10, 10, 10, 10, 10, 10, 110])  # max/mean 6.64
WARM = layer([450, 79, 79, 79, 79, 78, 78, 78])  # 3.60: under the threshold, not yet clear of it
EVEN = layer([125] * 7 + [126])


class TestDuration:
    def test_a_condition_has_to_last(self) -> None:
        """Two judged windows in a row by default; it counts from the first of them."""
        found = told(AlertJudge(AlertRules()), EVEN, HOT, EVEN, HOT, HOT, HOT)
        assert only("severe_imbalance", found) == [("started", 50)]
        (alert,) = (item for item in found[4] if item.kind == "severe_imbalance")
        assert (alert.first_step, alert.step) == (31, 50)

    def test_it_is_said_once_when_it_starts_and_once_when_it_is_over(self) -> None:
        """What goes on is not said again; the end has to last as well."""
        found = told(AlertJudge(AlertRules()), *[HOT] * 6, EVEN, HOT, EVEN, EVEN, EVEN)
        assert only("severe_imbalance", found) == [("started", 20), ("ended", 100)]

    def test_an_end_says_since_when_it_was(self) -> None:
        """The end has the first step of the start, and the figure that ended it."""
        found = told(AlertJudge(PLAIN), EVEN, HOT, EVEN)
        (over,) = (item for item in found[2] if item.kind == "severe_imbalance")
        assert (over.first_step, over.step, over.state) == (11, 30, "ended")
        assert over.message == "layers.0.mlp: Severe expert imbalance (ratio: 1.01)"

    def test_between_the_levels_nothing_changes(self) -> None:
        """A figure around the threshold is one alert: it ends at 0.8 of the way from even."""
        found = told(AlertJudge(PLAIN), HOT, WARM, HOT, WARM, WARM, EVEN)
        assert only("severe_imbalance", found) == [("started", 10), ("ended", 60)]

    def test_without_hysteresis_it_ends_at_the_threshold(self) -> None:
        """``leave=1`` makes both levels one."""
        rules = AlertRules(above_floor=False, duration=1, leave=1.0)
        found = told(AlertJudge(rules), HOT, WARM, HOT)
        assert only("severe_imbalance", found) == [
            ("started", 10),
            ("ended", 20),
            ("started", 30),
        ]


class TestAboveTheFloor:
    def test_chance_is_no_alert(self) -> None:
        """One token of one expert in 64: max/mean 64, which is what any router shows."""
        judge = AlertJudge(AlertRules(duration=1))
        assert told(judge, layer([1] + [0] * 63)) == [[]]
        assert kinds(told(AlertJudge(PLAIN), layer([1] + [0] * 63))[0]) >= {"severe_imbalance"}

    def test_short_windows_are_added_up(self) -> None:
        """12 tokens leave 2 of 8 experts idle by chance; 28 * (7/8)^(2 * 72) < 1e-6 do not."""
        found = told(AlertJudge(AlertRules(duration=1)), *[layer([2, 2, 2, 2, 2, 2, 0, 0])] * 40)
        assert only("unused_experts", found) == [("started", 60)]

    def test_what_chance_cannot_explain_is_seen_at_once(self) -> None:
        """Every token on one expert of 64 needs no more windows than it has to last."""
        found = told(AlertJudge(AlertRules()), *[layer([16] + [0] * 63)] * 3)
        assert only("severe_imbalance", found) == [("started", 20)]

    def test_the_floor_is_told(self) -> None:
        """The alert has the figure, and what chance would show in as many tokens."""
        found = told(AlertJudge(AlertRules(duration=1)), HOT)
        (alert,) = (item for item in found[0] if item.kind == "severe_imbalance")
        assert alert.value == 6.64
        assert 1.1 < alert.floor < 1.2  # 1 + MaxVio of a uniform router, 1000 tokens, 8 experts

    def test_a_figure_just_above_is_not_above_the_floor(self) -> None:
        """4.1 times the mean, of which chance explains 0.12, is under a threshold of 4."""
        counts = [512, *[70] * 6, 68]
        assert sum(counts) == 1000
        assert (
            only("severe_imbalance", told(AlertJudge(AlertRules(duration=1)), layer(counts))) == []
        )
        assert only("severe_imbalance", told(AlertJudge(PLAIN), layer(counts))) != []

    @pytest.mark.parametrize(("experts", "top_k", "tokens"), [(8, 2, 4), (64, 1, 8), (32, 4, 64)])
    def test_a_uniform_router_is_left_alone(self, experts: int, top_k: int, tokens: int) -> None:
        """300 windows of a uniform router, tiny ones, without a single alert."""
        rng = np.random.default_rng(experts)
        judge = AlertJudge(AlertRules(duration=1))
        for step in range(1, 301):
            picks = rng.random((tokens, experts)).argpartition(top_k, axis=1)[:, :top_k]
            counts = np.bincount(picks.ravel(), minlength=experts).tolist()
            assert judge.judge(at(10 * step, layer(counts, top_k=top_k))) == ()


class TestPhases:
    def test_only_training_is_judged_by_default(self) -> None:
        """An evaluation may be of one subject."""
        judge = AlertJudge(PLAIN)
        assert judge.judge(at(10, HOT, phase="eval")) == ()
        assert judge.judge(at(10, HOT)) != ()

    def test_phases_do_not_mix(self) -> None:
        """What holds in one phase is not over because another one is even."""
        judge = AlertJudge(AlertRules(above_floor=False, duration=1, phases=("train", "eval")))
        judge.judge(at(10, HOT))
        judge.judge(at(10, EVEN, phase="eval"))
        assert only("severe_imbalance", [judge.judge(at(20, HOT))]) == []


class TestManyLayers:
    def test_each_layer_for_itself(self) -> None:
        """An alert names its layer, and how many layers its kind holds in by now."""
        a, b = layer([90, 2, 2, 2, 2, 2], name="a"), layer([90, 2, 2, 2, 2, 2], name="b")
        calm = layer([17, 17, 17, 17, 16, 16], name="a")
        found = told(AlertJudge(PLAIN), [calm, b], [a, b], [calm, b])
        said = [
            (alert.layer, alert.state, alert.active)
            for alerts in found
            for alert in alerts
            if alert.kind == "severe_imbalance"
        ]
        assert said == [("b", "started", 1), ("a", "started", 2), ("a", "ended", 1)]


class TestResume:
    def test_what_was_said_is_not_said_again(self) -> None:
        """After a resume an alert that still holds is silent, and its end is told."""
        before = [alert for alerts in told(AlertJudge(PLAIN), HOT) for alert in alerts]
        judge = AlertJudge(PLAIN)
        judge.resume(before)
        found = told(judge, HOT, HOT, EVEN)
        assert only("severe_imbalance", found) == [("ended", 30)]
        (over,) = (item for item in found[2] if item.kind == "severe_imbalance")
        assert (over.first_step, over.active) == (1, 0)

    def test_what_was_over_can_start_again(self) -> None:
        """An alert that had ended is raised anew."""
        before = [a for alerts in told(AlertJudge(PLAIN), HOT, EVEN) for a in alerts]
        judge = AlertJudge(PLAIN)
        judge.resume(before)
        assert only("severe_imbalance", told(judge, HOT)) == [("started", 10)]


class TestBounds:
    def test_memory_does_not_grow_with_the_run(self) -> None:
        """After 50 windows and after 500 the judge holds the same amount."""
        judge = AlertJudge(AlertRules())
        sizes = []
        rng = np.random.default_rng(0)
        for step in range(1, 501):
            counts = rng.multinomial(64, [1 / 16] * 16).tolist()
            judge.judge(at(step, layer(counts), every=1))
            if step in (50, 500):
                sizes.append(len(pickle.dumps(judge)))
        assert sizes[1] < 1.2 * sizes[0]

    @given(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 50), min_size=4, max_size=4),
                st.floats(0, 1.4),
                st.integers(0, 60),
                st.integers(0, 3),
            ),
            max_size=30,
        ),
        st.booleans(),
        st.integers(1, 3),
    )
    def test_any_history_is_starts_and_ends_in_turn(
        self,
        rows: list[tuple[list[int], float, int, int]],
        above_floor: bool,
        duration: int,
    ) -> None:
        """Whatever a router does, a condition starts, ends, starts: never twice, never raising."""
        judge = AlertJudge(AlertRules(above_floor=above_floor, duration=duration))
        windows = [
            layer(c, entropy=e, dropped=d, nonfinite=min(n, sum(c) + d)) for c, e, d, n in rows
        ]
        found = told(judge, *windows)
        for kind in KINDS:
            states = [state for state, _ in only(kind, found)]
            assert states == ["started", "ended"] * (len(states) // 2) + ["started"] * (
                len(states) % 2
            )
        assert all(0 <= alert.active <= 1 for alerts in found for alert in alerts)
