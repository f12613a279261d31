import numpy as np
import pytest

from moetrace.report.windows import ABSENT, grouped, layers_of, tabulate
from tests.report.made import stats, window


class TestGrouped:
    @pytest.mark.parametrize("count", [2, 3, 7, 49, 50, 60])
    def test_keeps_order_and_the_last_window_alone(self, count: int) -> None:
        """Every window is in one group, in order, and the last one is a group of its own."""
        groups = grouped(list(range(50)), count)  # type: ignore[arg-type]
        assert [item for group in groups for item in group] == list(range(50))
        assert groups[-1] == [49]
        assert len(groups) == min(count, 50)

    def test_never_makes_less_than_two_groups_of_more_windows(self) -> None:
        """The last window cannot be kept exactly and be added to another."""
        assert grouped([1, 2, 3], 1) == [[1, 2], [3]]  # type: ignore[list-item]


class TestTabulate:
    def test_adds_the_windows_of_a_group_and_forms_ratios_after(self) -> None:
        """Loads 3:1 and 1:3 add up to 4:4, whose CV is 0, and not the mean of 0.5 and 0.5."""
        history = [window(1, 5, stats("a", [3, 1])), window(6, 9, stats("a", [1, 3]))]
        layers = layers_of(history, ["a"])
        alone = tabulate("train", [[item] for item in history], layers)
        together = tabulate("train", [history], layers)
        assert alone.metrics["load_cv"].tolist() == [[0.5], [0.5]]
        assert together.cells.tolist() == [[4, 4]]
        assert together.tokens.tolist() == [[8]]
        assert together.spans.tolist() == [[1, 9]]
        assert together.metrics["load_cv"].tolist() == [[0.0]]

    def test_layers_stand_beside_each_other_with_their_own_number_of_experts(self) -> None:
        """Three experts and two make five cells; each layer finds its own."""
        history = [window(1, 1, stats("a", [1, 2, 3]), stats("b", [4, 5]))]
        table = tabulate("train", [history], layers_of(history, ["b", "a"]))
        assert table.cells.tolist() == [[4, 5, 1, 2, 3]]
        assert table.counts(1).tolist() == [[1, 2, 3]]

    def test_a_layer_that_a_window_lacks_is_absent_and_not_zero(self) -> None:
        """Pipeline stages may report alone: nothing counted is not a count of nothing."""
        history = [window(1, 1, stats("a", [1, 1])), window(2, 2, stats("b", [2, 2]))]
        table = tabulate("train", [[item] for item in history], layers_of(history, ["a", "b"]))
        assert table.cells.tolist() == [[1, 1, ABSENT, ABSENT], [ABSENT, ABSENT, 2, 2]]
        assert table.tokens.tolist() == [[2, ABSENT], [ABSENT, 4]]
        assert np.isnan(table.metrics["load_cv"]).tolist() == [[False, True], [True, False]]

    def test_a_layer_that_changed_its_shape_keeps_its_last_one(self) -> None:
        """A run resumed with more experts is shown as it is now; the old windows are absent."""
        history = [window(1, 1, stats("a", [1, 1])), window(2, 2, stats("a", [1, 1, 1]))]
        table = tabulate("train", [[item] for item in history], layers_of(history, ["a"]))
        assert table.cells.tolist() == [[ABSENT] * 3, [1, 1, 1]]

    def test_says_why_a_balance_is_withheld_in_the_last_window(self) -> None:
        """The reason is the metric's own, by layer."""
        history = [
            window(1, 1, stats("a", [3, 1], top_k=2)),
            window(2, 2, stats("a", [2, 1], top_k=2)),
        ]
        table = tabulate("train", [[item] for item in history], layers_of(history, ["a"]))
        assert table.withheld == {"a": "found 3 assignments where tokens * top_k is 2"}
