import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import metrics

experts_and_ranks = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=30
)


class TestRankLoad:
    def test_adds_the_experts_of_each_rank(self):
        """A rank computes what its experts were assigned, wherever they stand in the list."""
        load = metrics.rank_load(np.array([4, 2, 1, 1]), placement=[1, 0, 1, 0])
        assert load.tolist() == [3, 5]

    def test_a_rank_without_experts_counts(self):
        """A rank that holds no expert is idle, and that is load imbalance too."""
        counts = np.array([2, 2])
        assert metrics.rank_load(counts, placement=[0, 1], ranks=4).tolist() == [2, 2, 0, 0]
        assert metrics.rank_imbalance(counts, placement=[0, 1], ranks=4) == 2.0

    @pytest.mark.parametrize(
        ("placement", "ranks", "message"),
        [([0], None, "give one each"), ([0, -1], None, "lie in"), ([0, 2], 2, r"lie in \[0, 2\)")],
    )
    def test_refuses_a_placement_that_does_not_fit(self, placement, ranks, message):
        """Each expert is on exactly one rank in [0, R)."""
        with pytest.raises(ValueError, match=message):
            metrics.rank_load(np.array([1, 1]), placement=placement, ranks=ranks)

    @given(experts_and_ranks)
    def test_equals_a_loop(self, rows):
        """No assignment is lost or counted on two ranks."""
        counts, placement = [count for count, _ in rows], [rank for _, rank in rows]
        expected = [0] * (max(placement) + 1)
        for count, rank in rows:
            expected[rank] += count
        assert metrics.rank_load(np.array(counts), placement=placement).tolist() == expected


class TestRankImbalance:
    def test_even_ranks_of_uneven_experts(self):
        """A placement can even out what the experts do not."""
        counts = np.array([4, 0, 2, 2])
        assert metrics.rank_imbalance(counts, placement=[0, 0, 1, 1]) == 1.0

    def test_nothing_routed(self):
        """Without an assignment there is no ratio."""
        assert math.isnan(metrics.rank_imbalance(np.zeros(2, int), placement=[0, 1]))
