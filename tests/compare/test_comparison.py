"""What a comparison finds: nothing between equals, and a planted fault by layer and size."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moetrace.compare import Comparison, compare_runs, comparison_record
from moetrace.compare.text import in_words
from moetrace.metrics import load_change
from moetrace.snapshot import Snapshot
from tests.compare.made import LAYERS, kept, uniform
from tests.report.made import stats, window


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., Comparison]:
    """Compare runs that hold these windows."""

    def compare(*histories: list[Snapshot], step: int | None = None) -> Comparison:
        runs = [kept(tmp_path / f"{at}", *history) for at, history in enumerate(histories)]
        return compare_runs(runs, step=step)

    return compare


class TestCompareRuns:
    def test_a_run_against_itself_does_not_differ(
        self, compared: Callable[..., Comparison]
    ) -> None:
        """Every difference is 0, and 0 times its noise."""
        history = uniform(seed=1)
        changes = compared(history, history).changes(1)
        assert {item.difference for item in changes} == {0.0}
        assert {item.times for item in changes} == {0.0}

    def test_two_seeds_of_a_uniform_router_differ_by_chance(
        self, compared: Callable[..., Comparison]
    ) -> None:
        """The load that moved is about once its noise, over 36 layers and windows."""
        found = compared(uniform(seed=1), uniform(seed=2))
        times = found.load_change[1] / found.load_noise[1]
        assert times.shape == (12, 3)
        assert float(times.mean()) == pytest.approx(1.0, abs=0.15)
        assert float(times.max()) < 2.5

    def test_a_planted_fault_is_first(self, compared: Callable[..., Comparison]) -> None:
        """Expert 5 of layer 1 gets 30 % for 12.5 %: 17.5 % of the load moved, chance aside."""
        found = compared(uniform(seed=1), uniform(seed=2, hot_from=4))
        loads = [item for item in found.changes(1) if item.figure == "load"]
        assert loads[0].layer == LAYERS[1]
        assert loads[0].difference == pytest.approx(0.175, abs=0.03)
        assert loads[0].times is not None
        assert loads[0].times > 6
        assert all(item.times is not None and item.times < 3 for item in loads[1:])
        cv = next(item for item in found.changes(1) if item.figure == "load_cv")
        assert (cv.layer, cv.times is not None and cv.times > 10) == (LAYERS[1], True)

    @pytest.mark.parametrize("gone", [0, 1])
    def test_a_layer_that_routes_in_one_run_only_is_first_of_all(
        self, compared: Callable[..., Comparison], gone: int
    ) -> None:
        """Before a hot expert; none of its figures exists, so nothing else is said of it."""
        histories = [uniform(seed=1), uniform(seed=2, hot_from=4)]
        last = histories[gone][-1]
        silent = replace(stats(LAYERS[2], [0] * 8), calls=0)
        histories[gone][-1] = replace(last, routing=(*last.routing[:2], silent))
        changes = compared(*histories).changes(1)
        assert in_words(changes[0]) == (
            f"{LAYERS[2]}: no tokens routed, 4,000 in A"
            if gone
            else f"{LAYERS[2]}: 4,000 tokens routed, none in A"
        )
        assert [item.layer for item in changes].count(LAYERS[2]) == 1

    def test_the_figures_are_those_of_the_runs(self, compared: Callable[..., Comparison]) -> None:
        """Each number is the metric of the window that it stands for."""
        one, two = uniform(seed=1, windows=2), uniform(seed=2, windows=2)
        found = compared(one, two)
        for run, history in enumerate((one, two)):
            for at, snapshot in enumerate(history):
                expected = [item.metrics()["load_cv"] for item in snapshot]
                assert found.figures["load_cv"][run, at].tolist() == expected
        moved = load_change(*(h[1][LAYERS[2]].tokens_per_expert for h in (one, two)))
        assert found.load_change[1, 1, 2] == moved

    def test_shows_the_last_span(self, compared: Callable[..., Comparison]) -> None:
        """Where no step is asked for."""
        history = uniform(seed=1, windows=3)
        assert compared(history, history).at == 2

    def test_shows_the_span_of_a_step(self, compared: Callable[..., Comparison]) -> None:
        """Step 14 is in steps 11 to 20."""
        found = compared(uniform(seed=1, windows=3), uniform(seed=2, windows=3), step=14)
        assert found.spans[found.at].tolist() == [11, 20]
        assert found.shown[1][LAYERS[0]].tokens == 4000

    def test_counts_windows_of_other_steps(self, compared: Callable[..., Comparison]) -> None:
        """A run that goes on longer is compared where both were; wider windows are added up."""
        found = compared(uniform(seed=1, windows=12), uniform(seed=2, windows=3, every=30))
        assert found.spans.tolist() == [[1, 30], [31, 60], [61, 90]]
        assert [(item.windows, item.unmatched) for item in found.subjects] == [(12, 3), (3, 0)]

    def test_batches_of_another_size_are_held_against_their_floors(
        self, compared: Callable[..., Comparison]
    ) -> None:
        """A quarter of the tokens doubles the CV of a uniform router; its excess stays."""
        rng = np.random.default_rng(9)
        one, two = (
            [
                window(
                    10 * n + 1, 10 * n + 10, stats("a", rng.multinomial(t, [1 / 8] * 8).tolist())
                )
                for n in range(30)
            ]
            for t in (8000, 500)
        )
        found = compared(one, two)
        raw = np.mean(found.figures["load_cv"][1] - found.figures["load_cv"][0])
        judged = np.mean(found.compared["load_cv"][1] - found.compared["load_cv"][0])
        assert raw > 0.07
        assert abs(judged) < 0.02

    def test_rounding_is_no_difference(self, compared: Callable[..., Comparison]) -> None:
        """Entropies that differ in the seventh digit, without any noise, do not differ."""
        one, two = (
            [window(n, n, stats("a", [9] * 3, entropy=value)) for n in range(1, 7)]
            for value in (1.0, 1.0000001)
        )
        changes = compared(one, two).changes(1)
        entropy = next(item for item in changes if item.figure == "routing_entropy")
        assert entropy.before != entropy.after
        assert (entropy.difference, entropy.times) == (0.0, 0.0)

    def test_layers_that_do_not_match_are_named(self, compared: Callable[..., Comparison]) -> None:
        """One that a run lacks, and one with other experts."""
        one = [window(1, 10, stats("a", [1, 1]), stats("b", [1, 1]), stats("c", [1, 1]))]
        two = [window(1, 10, stats("a", [1, 1]), stats("b", [1, 1, 1]))]
        found = compared(one, two)
        assert found.layers == ("a",)
        assert found.left_out == {"b": "has 2 or 3 experts", "c": "not in B"}

    @pytest.mark.parametrize(
        ("second", "step", "said"),
        [
            ([window(1, 10, stats("z", [1, 1]))], None, "no layer that all runs have"),
            ([window(5, 10, stats("a", [1, 1]))], None, "no steps of phase 'train'"),
            ([window(1, 10, stats("a", [1, 1]))], 99, "no common window with step 99"),
        ],
    )
    def test_says_why_it_cannot_compare(
        self, compared: Callable[..., Comparison], second: list[Snapshot], step: int, said: str
    ) -> None:
        """Nothing in common is an error that says what each run has."""
        with pytest.raises(ValueError, match=said):
            compared([window(1, 10, stats("a", [1, 1]))], second, step=step)

    def test_takes_two_runs_or_more(self, compared: Callable[..., Comparison]) -> None:
        """One run has nothing to be compared with."""
        with pytest.raises(ValueError, match="takes two or more"):
            compared(uniform(seed=1, windows=1))


class TestComparisonRecord:
    def test_is_valid_json_with_every_number(self, compared: Callable[..., Comparison]) -> None:
        """A difference without noise has no number for how many times it is."""
        one = [window(10 * n + 1, 10 * n + 10, stats("a", [2, 2])) for n in range(6)]
        two = [window(10 * n + 1, 10 * n + 10, stats("a", [4, 0])) for n in range(6)]
        found = compared(one, two, two)
        record = json.loads(json.dumps(comparison_record(found), allow_nan=False))
        assert [item["run"] for item in record["against"]] == ["B", "C"]
        against = record["against"][1]
        assert against["layers"][0]["load_change"] == 0.5
        assert against["layers"][0]["load_cv"] == [0.0, 1.0]
        assert against["layers"][0]["z_loss"] == [0.0, 0.0]
        assert against["load_change"] == [[0.5]] * 6
        dead = next(item for item in against["changes"] if item["figure"] == "dead_experts")
        assert (dead["difference"], dead["noise"], dead["times"]) == (1.0, 0.0, None)
        assert math.isinf(next(i for i in found.changes(1) if i.figure == "load_cv").times or 0)
