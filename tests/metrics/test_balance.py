import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import metrics
from moetrace.metrics.window import BALANCE

ONE_OF_EIGHT = np.array([8, 0, 0, 0, 0, 0, 0, 0])
EVEN = np.array([3, 3, 3, 3])
UNEVEN = np.array([6, 4, 4, 2])
SPREAD = (8 / 3) ** (3 / 8) * 4 ** (1 / 4) * 4 ** (1 / 4) * 8 ** (1 / 8)
"""Effective experts of UNEVEN: the product of (1 / f_e) ** f_e over its shares."""

counts = st.lists(st.integers(0, 10**9), min_size=1, max_size=40).filter(any)


class TestLoadShare:
    def test_adds_up_to_one(self):
        """Shares are the counts over their sum."""
        assert metrics.load_share(UNEVEN).tolist() == [0.375, 0.25, 0.25, 0.125]

    def test_nothing_routed(self):
        """Without an assignment there is no share, and so no number."""
        assert np.isnan(metrics.load_share(np.zeros(4, np.int64))).all()

    @pytest.mark.parametrize("shape", [(2, 2), (0,), ()])
    def test_refuses_other_shapes(self, shape):
        """Counts of one layer are one vector; anything else is a caller's slip."""
        with pytest.raises(ValueError, match=r"expected \(E,\)"):
            metrics.load_share(np.ones(shape, np.int64))


class TestLiterals:
    @pytest.mark.parametrize(
        ("name", "even", "uneven", "collapsed"),
        [
            ("load_cv", 0.0, math.sqrt(2) / 4, math.sqrt(7)),
            ("load_imbalance", 1.0, 1.5, 8.0),
            ("max_vio", 0.0, 0.5, 7.0),
            ("min_vio", 0.0, -0.5, -1.0),
            ("avg_vio", 0.0, 0.25, 1.75),
            ("load_gini", 0.0, 0.1875, 0.875),
            ("load_entropy", math.log(4), math.log(SPREAD), 0.0),
            ("load_entropy_normalized", 1.0, math.log(SPREAD) / math.log(4), 0.0),
            ("effective_experts", 4.0, SPREAD, 1.0),
            ("dead_experts", 0.0, 0.0, 7.0),
            ("active_experts", 4.0, 4.0, 1.0),
            ("hot_experts", 0.0, 0.0, 1.0),
        ],
    )
    def test_by_hand(self, name, even, uneven, collapsed):
        """An even load, an uneven one and a collapse give the values worked out by hand."""
        found = [BALANCE[name](load) for load in (EVEN, UNEVEN, ONE_OF_EIGHT)]
        assert found == pytest.approx([even, uneven, collapsed], abs=1e-12)

    def test_every_balance_metric_has_a_literal(self):
        """No balance metric goes without a hand-worked value."""
        marks = self.test_by_hand.pytestmark[0]
        assert {case[0] for case in marks.args[1]} == set(BALANCE)

    def test_cv_is_the_population_form(self):
        """S1-04: all on one of 8 experts is sqrt(7) = 2.6458, not the sample form's sqrt(8)."""
        assert round(metrics.load_cv(ONE_OF_EIGHT), 4) == 2.6458


class TestHotExperts:
    def test_the_threshold_itself_is_not_hot(self):
        """Hot is more than tau times the mean, not exactly tau times."""
        assert metrics.hot_experts(np.array([2, 0]), tau=2.0) == 0.0

    def test_top_k_bounds_what_can_be_hot(self):
        """With 8 experts and top-2 the worst load is 4 times the mean: never hot at 5."""
        worst = np.array([100, 100, 0, 0, 0, 0, 0, 0])
        assert metrics.hot_experts(worst) == 0.0
        assert metrics.hot_experts(worst, tau=3.5) == 2.0


class TestNothingRouted:
    @pytest.mark.parametrize("name", sorted(BALANCE))
    def test_is_nan(self, name):
        """Where nothing was routed there is NaN, never a made-up 0 or 1."""
        assert math.isnan(BALANCE[name](np.zeros(4, np.int64)))


class TestAgainstSlowOracles:
    @given(counts)
    def test_moments(self, load):
        """CV and the violations equal loops over the experts."""
        found, array = len(load), np.array(load)
        mean = sum(load) / found
        variance = sum((c - mean) ** 2 for c in load) / found
        assert metrics.load_cv(array) == pytest.approx(math.sqrt(variance) / mean, abs=1e-9)
        assert metrics.load_imbalance(array) == pytest.approx(max(load) / mean)
        assert metrics.max_vio(array) == pytest.approx(max(load) / mean - 1, abs=1e-9)
        assert metrics.min_vio(array) == pytest.approx(min(load) / mean - 1, abs=1e-9)
        violation = sum(abs(c / mean - 1) for c in load) / found
        assert metrics.avg_vio(array) == pytest.approx(violation, abs=1e-9)

    @given(counts)
    def test_gini(self, load):
        """The sorted form of Gini equals the double sum over all pairs."""
        pairs = sum(abs(a - b) for a in load for b in load)
        expected = pairs / (2 * len(load) * sum(load))
        assert metrics.load_gini(np.array(load)) == pytest.approx(expected, abs=1e-9)

    @given(counts)
    def test_entropy(self, load):
        """Entropy and effective experts equal a loop with 0 ln 0 = 0, inside their ranges."""
        array = np.array(load)
        shares = [c / sum(load) for c in load if c]
        expected = -sum(f * math.log(f) for f in shares)
        assert metrics.load_entropy(array) == pytest.approx(expected, abs=1e-9)
        assert metrics.effective_experts(array) == pytest.approx(math.exp(expected))
        assert metrics.load_entropy(array) >= 0.0
        assert metrics.effective_experts(array) <= len(load)
        if len(load) > 1:
            assert 0.0 <= metrics.load_entropy_normalized(array) <= 1.0

    @given(counts)
    def test_who_is_dead_and_who_is_hot(self, load):
        """Dead and active experts add up to E; hot ones are those above tau times the mean."""
        array = np.array(load)
        assert metrics.dead_experts(array) == load.count(0)
        assert metrics.active_experts(array) == len(load) - load.count(0)
        hot = sum(c * len(load) > 5 * sum(load) for c in load)
        assert metrics.hot_experts(array) == hot

    @given(counts, st.integers(1, 1000))
    def test_scale_does_not_matter(self, load, factor):
        """A window ten times as long with the same shares has the same balance."""
        once, often = np.array(load), np.array(load) * factor
        for metric in BALANCE.values():
            assert metric(often) == pytest.approx(metric(once), abs=1e-9, nan_ok=True)
