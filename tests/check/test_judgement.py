"""Rules held against windows whose figures a reader checks by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.check import Judgement, Sighting, check_run, parse_rule
from moetrace.index_stats import index_stats_of
from moetrace.snapshot import Snapshot
from tests.report.made import MadeRun, stats, window

EVEN, HALF, ONE = [25, 25, 25, 25], [50, 50, 0, 0], [100, 0, 0, 0]
# dead experts: 0, 2, 3; MaxVio: 0, 1, 3; both with 100 tokens and K = 1


class Windows(MadeRun):
    """A run in memory that goes by window after window."""

    def windows(self, *, phase: str = "train"):
        """The windows of a phase."""
        return iter(self.snapshots(phase=phase))


def judged(rule: str, *history: Snapshot) -> Judgement:
    """What becomes of one rule over these windows."""
    phases: dict[str, Sequence[Snapshot]] = {}
    for item in history:
        phases[item.phase] = [*phases.get(item.phase, ()), item]
    (judgement,) = check_run(Windows(phases), [parse_rule(rule)])  # type: ignore[arg-type]
    return judgement


def at(first: int, *counts: Sequence[int], phase: str = "train") -> Snapshot:
    """A window of ten steps; layers are a, b, c."""
    layers = (stats(name, item) for name, item in zip("abc", counts, strict=False))
    return window(first, first + 9, *layers, phase=phase)


class TestCheckRun:
    def test_holds_where_every_layer_of_every_window_does(self) -> None:
        """Two windows of two layers are four values."""
        found = judged("dead_experts <= 2", at(1, EVEN, HALF), at(11, HALF, HALF))
        assert (found.holds, found.judged, found.windows, found.broken) == (True, 4, 2, 0)
        assert (found.first, found.worst) == (None, None)

    def test_names_the_first_and_the_worst(self) -> None:
        """Layer, steps and value of both."""
        found = judged("max_vio < 1", at(1, EVEN), at(11, EVEN, HALF), at(21, ONE, HALF))
        assert not found.holds
        assert found.first == Sighting("b", 11, 20, 1.0)
        assert found.worst == Sighting("a", 21, 30, 3.0)
        assert (found.broken, found.judged) == (3, 5)

    def test_after_leaves_out_windows_that_begin_before(self) -> None:
        """A window of steps 11 to 20 is after step 10, and not after step 11."""
        history = at(1, ONE), at(11, HALF)
        assert judged("dead == 2 after step 10", *history).holds
        assert judged("dead == 2 after step 11", *history).judged == 0

    def test_layers_and_phase_choose(self) -> None:
        """A glob over names, and one phase."""
        history = at(1, ONE, EVEN), at(10, HALF, EVEN, phase="eval")
        assert judged("dead == 0 layers=b", *history).holds
        assert judged("dead == 3 layers=[a]", *history).holds
        assert judged("dead == 2 layers=a phase=eval", *history).holds

    def test_a_reduction_is_one_number_a_window(self) -> None:
        """0, 2 and 3 dead experts are 5 together; the layer furthest off is named."""
        found = judged("dead sum == 4", at(1, EVEN, HALF, ONE))
        assert (found.judged, found.broken) == (1, 1)
        assert found.first == Sighting("a", 1, 10, 5.0)
        assert judged("dead p50 == 2", at(1, EVEN, HALF, ONE)).holds
        found = judged("max_vio p50 < 1", at(1, EVEN, HALF, ONE))
        assert found.first == Sighting("c", 1, 10, 1.0)

    def test_counters_are_figures(self) -> None:
        """``tokens`` is the layer's own counter."""
        assert judged("tokens == 100", at(1, EVEN, ONE)).holds

    @pytest.mark.parametrize(
        "rule", ["dead == 0 after step 100", "dead == 0 layers=zzz", "dead == 0 phase=eval"]
    )
    def test_nothing_to_judge_does_not_hold(self, rule: str) -> None:
        """A check that looks at nothing would pass for ever."""
        found = judged(rule, at(1, EVEN))
        assert (found.holds, found.judged, found.broken) == (False, 0, 0)

    def test_a_withheld_figure_is_not_judged_and_told(self) -> None:
        """Another layer's value is judged all the same; alone, the rule does not hold."""
        silent = stats("b", EVEN, scoring="none")
        both = window(1, 10, stats("a", EVEN, entropy=1.0), silent)
        found = judged("entropy > 0.5", both)
        assert (found.holds, found.judged) == (True, 1)
        assert found.withheld == {"the router shows no logits": 1}
        assert not judged("entropy > 0.5", window(1, 10, silent)).holds

    def test_tables_of_experts_have_figures_of_their_own(self) -> None:
        """A rule about them leaves routers alone, and one about routers leaves tables alone."""
        table = index_stats_of("peer", np.array([3, 1, 0, 0]), scalars={"tokens": 4})
        window = replace(at(1, EVEN), indices=(table, replace(table, layer="other", used=None)))
        found = judged("coverage >= 0.5", window)
        assert (found.holds, found.judged) == (True, 1)
        assert found.withheld == {"it is not known of this window of a table": 1}
        assert judged("max_over_avg < 3", window).first == Sighting("peer", 1, 10, 3.0)
        assert judged("tokens >= 4", window).judged == 3
        assert judged("load_cv < 1", window).judged == 1

    def test_needs_a_rule(self) -> None:
        """No rule is a mistake and no success."""
        with pytest.raises(ValueError, match="found no rule to check"):
            check_run(Windows({}), [])  # type: ignore[arg-type]

    @given(
        st.lists(st.lists(st.sampled_from([EVEN, HALF, ONE]), min_size=1, max_size=3), max_size=6),
        st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
        st.integers(0, 3),
        st.integers(0, 40),
    )
    def test_counts_what_a_plain_loop_counts(
        self, table: list[list[list[int]]], comparison: str, number: int, after: int
    ) -> None:
        """The oracle evaluates the rule as Python, value by value."""
        history = [at(10 * row + 1, *counts) for row, counts in enumerate(table)]
        found = judged(f"dead {comparison} {number} after {after}", *history)
        values = [
            counts.count(0)
            for row, layers in enumerate(table)
            if 10 * row + 1 > after
            for counts in layers
        ]
        broken = [value for value in values if not eval(f"{value} {comparison} {number}")]
        assert (found.judged, found.broken) == (len(values), len(broken))
        assert found.holds == (len(values) > 0 and not broken)
        if broken:
            assert found.first is not None
            assert found.worst is not None
            assert found.first.value == broken[0]
            assert abs(found.worst.value - number) == max(abs(value - number) for value in broken)

    def test_undefined_values_are_none_of_them(self) -> None:
        """A layer without a token has no balance, which is no 0."""
        found = judged("cv < 1", window(1, 10, stats("a", np.zeros(4, int).tolist())))
        assert (found.judged, found.withheld) == (0, {"nothing was routed": 1})
