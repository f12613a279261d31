"""How tables of experts are used: hand-worked windows, and slow oracles in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.metrics import (
    coverage,
    dead_sub_keys,
    hot_indices,
    hot_overlap,
    mutual_information,
    persistent_experts,
    rank_curve,
    rank_slope,
    sub_key_counts,
    top_indices,
    top_share,
    unevenness,
)

WINDOW = np.array([6, 1, 0, 1, 0, 0, 0, 0])
"""Eight experts, eight draws: the mean over all experts is 1."""

grids = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda sides: st.lists(
        st.integers(0, 40), min_size=sides[0] * sides[1], max_size=sides[0] * sides[1]
    ).map(lambda counts: (np.array(counts), sides[1]))
)
counts_of_experts = st.lists(st.integers(0, 60), min_size=1, max_size=80).map(np.array)


def divergence(weights):
    """Kullback-Leibler divergence to uniform, term by term."""
    total = sum(weights)
    return sum(w / total * math.log(w / total * len(weights)) for w in weights if w)


class TestTable:
    @pytest.mark.parametrize(
        ("name", "found", "expected"),
        [
            ("total usages", WINDOW.sum(), 8),
            ("unique experts", np.count_nonzero(WINDOW), 3),
            ("coverage", coverage(WINDOW), 0.375),
            ("average usage", WINDOW.mean(), 1.0),
            ("hot experts", hot_indices(WINDOW, threshold=5.0).tolist(), [0]),
            ("top share", top_share(WINDOW, most=1), 0.75),
            ("unevenness", round(unevenness(WINDOW), 4), 1.3438),
        ],
    )
    def test_statistics_of_a_window(self, name, found, expected):
        """S2-07: each statistic of a window that a reader checks by hand."""
        assert found == expected, name


class TestHotIndices:
    def test_the_threshold_itself_is_not_hot(self):
        """S2-03: 5 draws where the mean is 1 are not above 5 times the mean; 6 are."""
        assert hot_indices(np.array([5, 2, 1, 0, 0, 0, 0, 0]), threshold=5.0).size == 0
        assert hot_indices(np.array([6, 2, 0, 0, 0, 0, 0, 0]), threshold=5.0).tolist() == [0]

    def test_the_mean_is_over_all_experts(self):
        """S2-03: unused experts count in the mean: of used ones alone 3 draws are the mean."""
        counts = np.zeros(100, np.int64)
        counts[:4] = 3
        assert hot_indices(counts, threshold=5.0).tolist() == [0, 1, 2, 3]

    def test_the_hottest_first_and_ties_by_id(self):
        """S2-11: rows of the table of hot experts come in a fixed order."""
        counts = np.zeros(40, np.int64)
        counts[[3, 7, 9]] = [8, 20, 8]
        assert hot_indices(counts, threshold=5.0).tolist() == [7, 3, 9]

    @given(counts_of_experts, st.sampled_from([0.5, 1.0, 2.0, 5.0]))
    def test_equals_a_loop(self, counts, threshold):
        """An expert is in the list if and only if it is above the multiple of the mean."""
        mean = sum(counts.tolist()) / len(counts)
        hot = [e for e, c in enumerate(counts.tolist()) if c > threshold * mean]
        found = hot_indices(counts, threshold=threshold).tolist()
        assert found == sorted(hot, key=lambda e: (-counts[e], e))


class TestTopIndices:
    def test_ties_are_stable(self):
        """S2-08: of equally busy experts those with the lower ids are listed, in their order."""
        assert top_indices(np.array([1, 5, 5, 5, 0]), most=2).tolist() == [1, 2]

    @given(counts_of_experts, st.integers(1, 90))
    def test_equals_a_sort(self, counts, most):
        """The busiest are the first of a stable sort, without those never drawn."""
        order = sorted((e for e, c in enumerate(counts) if c), key=lambda e: (-counts[e], e))
        assert top_indices(counts, most=most).tolist() == order[:most]


class TestUnevenness:
    def test_even_is_zero_and_one_expert_is_all(self):
        """0 where all are drawn alike, ln E where one has everything."""
        assert unevenness(np.full(8, 3)) == 0.0
        assert unevenness(np.array([0, 9, 0, 0])) == pytest.approx(math.log(4))

    def test_nothing_drawn_is_undefined(self):
        """Without draws there is no unevenness, and no coverage."""
        assert math.isnan(unevenness(np.zeros(4, np.int64)))
        assert math.isnan(coverage(np.zeros(4, np.int64)))

    @given(counts_of_experts.filter(lambda c: c.sum() > 0))
    def test_equals_the_definition(self, counts):
        """The sum over experts of ``p ln(p E)``."""
        assert unevenness(counts) == pytest.approx(divergence(counts.tolist()), abs=1e-9)


class TestSubKeys:
    def test_rows_and_columns_of_a_grid(self):
        """Expert ``i * columns + j`` is in row i and column j."""
        rows, columns = sub_key_counts(np.array([1, 2, 3, 4, 5, 6]), columns=3)
        assert (rows.tolist(), columns.tolist()) == ([6, 15], [5, 7, 9])

    def test_experts_that_are_no_grid(self):
        """A number of columns that does not divide the experts is refused."""
        with pytest.raises(ValueError, match="6 experts, which are no grid of 4 columns"):
            sub_key_counts(np.arange(6), columns=4)

    def test_a_diagonal_is_all_mutual_information(self):
        """Where the row says the column, ln 4 of four keys is mutual information."""
        diagonal = np.eye(4, dtype=np.int64).reshape(-1)
        assert mutual_information(diagonal, columns=4) == pytest.approx(math.log(4))

    def test_dead_sub_keys(self):
        """Rows without a draw are dead; without any draw nothing is said."""
        assert dead_sub_keys(np.array([0, 2, 0])) == 2.0
        assert math.isnan(dead_sub_keys(np.zeros(3, np.int64)))

    @given(grids.filter(lambda grid: grid[0].sum() > 0))
    def test_the_decomposition_is_exact(self, grid):
        """KL(joint) = KL(rows) + KL(columns) + MI, with MI term by term from its definition."""
        counts, columns = grid
        table = counts.reshape(-1, columns) / counts.sum()
        rows, cols = table.sum(1), table.sum(0)
        slow = sum(
            p * math.log(p / (rows[i] * cols[j])) for (i, j), p in np.ndenumerate(table) if p
        )
        assert mutual_information(counts, columns=columns) == pytest.approx(slow, abs=1e-9)


class TestRankCurve:
    @given(counts_of_experts)
    def test_equals_a_sort(self, counts):
        """The count at rank r is the r-th of the counts in falling order."""
        ranks, found = rank_curve(counts, points=20)
        order = sorted(counts.tolist(), reverse=True)
        assert found.tolist() == [order[rank - 1] for rank in ranks.tolist()]
        assert (ranks[0], ranks[-1]) == (1, len(counts))

    def test_very_large_counts(self):
        """Counts far above the number of experts are ranked too."""
        ranks, found = rank_curve(np.array([10**15, 3, 10**12]))
        assert (ranks.tolist(), found.tolist()) == ([1, 2, 3], [10**15, 10**12, 3])

    def test_a_million_experts_have_200_ranks(self):
        """The curve is of a bounded length, whatever the table's."""
        ranks, _ = rank_curve(np.ones(1 << 20, np.int64))
        assert 150 < len(ranks) <= 200

    def test_slope_of_an_even_use(self):
        """Even use has slope 0; a table of fewer than 100 experts has none."""
        assert rank_slope(*rank_curve(np.full(10_000, 7))) == pytest.approx(0, abs=1e-12)
        assert math.isnan(rank_slope(*rank_curve(np.full(50, 7))))


class TestPersistence:
    def test_hot_in_four_of_five_windows(self):
        """S2-13: an expert that is hot in 80 % of five windows is persistent; in 60 % it is not."""
        hot = [np.array([1, 2]), np.array([1]), np.array([1, 2]), np.array([2]), np.array([1])]
        assert persistent_experts(hot).tolist() == [1]

    def test_asks_for_all_windows(self):
        """S2-13: nothing is called persistent before there are five windows."""
        assert persistent_experts([np.array([1])] * 4).size == 0

    def test_only_the_last_windows_count(self):
        """S2-13: what was hot long ago is not persistent now (upstream's set only grows)."""
        hot = [np.array([9])] * 5 + [np.array([1])] * 5
        assert persistent_experts(hot).tolist() == [1]

    def test_overlap_of_two_windows(self):
        """Jaccard's index: 1 of 3 different experts is hot in both."""
        assert hot_overlap(np.array([1, 2]), np.array([2, 3])) == pytest.approx(1 / 3)
        assert math.isnan(hot_overlap(np.array([]), np.array([])))


class TestShape:
    @pytest.mark.parametrize("function", [coverage, unevenness, rank_curve])
    def test_refuses_what_is_no_vector(self, function):
        """Counts are one number per expert."""
        with pytest.raises(ValueError, match=r"expected \(E,\)"):
            function(np.zeros((2, 2), np.int64))
