"""What chance shows in a table of experts: published values, closed forms and simulation."""

import math

import numpy as np
import pytest

from moetrace.metrics import (
    coverage,
    coverage_floor,
    dead_sub_keys,
    dead_sub_keys_floor,
    hot_indices_floor,
    hot_overlap_floor,
    least_sure_count,
    mutual_information,
    mutual_information_floor,
    poisson_tail,
    rank_curve,
    sub_key_counts,
    unevenness,
    unevenness_floor,
    unevenness_score_floor,
    uniform_rank_curve,
)

MILLION = 1 << 20


def simulated(figure, *, draws, num_experts, times=40):
    """Mean of a figure over uniform draws."""
    rng = np.random.default_rng(0)
    found = [
        figure(np.bincount(rng.integers(0, num_experts, draws), minlength=num_experts))
        for _ in range(times)
    ]
    return float(np.mean(found))


class TestTableOfFloors:
    @pytest.mark.parametrize(
        ("mean", "covered", "uneven", "hot"),
        [
            (0.25, 0.221, 1.551, 27786),
            (0.5, 0.3935, 1.007, 15087),
            (1, 0.632, 0.573, 623),
            (2, 0.865, 0.2849, 8.7),
            (4, 0.982, 0.133, 0.002),
            (32, 1.0, 0.0157, 0.0),
        ],
    )
    def test_of_a_million_experts(self, mean, covered, uneven, hot):
        """S2-17: coverage, unevenness and hot experts at 5 times the mean, by draws per expert."""
        draws = int(mean * MILLION)
        assert coverage_floor(draws, num_experts=MILLION) == pytest.approx(covered, abs=6e-4)
        assert unevenness_floor(draws, num_experts=MILLION) == pytest.approx(uneven, abs=6e-4)
        found = hot_indices_floor(draws, num_experts=MILLION, threshold=5.0)
        assert found == pytest.approx(hot, rel=2e-3, abs=0.05)


class TestAgainstSimulation:
    @pytest.mark.parametrize("draws", [300, 1000, 6000])
    def test_coverage_and_unevenness(self, draws):
        """Within 1 % of the mean over uniform draws from 1000 experts."""
        for figure, floor in ((coverage, coverage_floor), (unevenness, unevenness_floor)):
            seen = simulated(figure, draws=draws, num_experts=1000)
            assert floor(draws, num_experts=1000) == pytest.approx(seen, rel=0.01)

    @pytest.mark.parametrize("draws", [800, 8000])
    def test_mutual_information(self, draws):
        """Within 2 % of the mean over uniform draws from a grid of 32 by 32."""
        seen = simulated(
            lambda counts: mutual_information(counts, columns=32), draws=draws, num_experts=1024
        )
        assert mutual_information_floor(draws, rows=32, columns=32) == pytest.approx(seen, rel=0.02)

    def test_dead_sub_keys(self):
        """Within 5 % of the mean over uniform draws: 64 draws leave 4.2 of 32 rows without one."""
        seen = simulated(
            lambda counts: dead_sub_keys(sub_key_counts(counts, columns=32)[0]),
            draws=64,
            num_experts=1024,
            times=400,
        )
        assert dead_sub_keys_floor(64, sub_keys=32) == pytest.approx(seen, rel=0.05)

    @pytest.mark.parametrize(("draws", "within"), [(6000, 0.12), (60_000, 0.02)])
    def test_unevenness_of_scores(self, draws, within):
        """Scores of very unequal size: within 12 % at 6 draws per expert, within 2 % at 60."""
        rng = np.random.default_rng(1)
        seen = []
        for _ in range(20):
            scores = rng.exponential(1.0, draws)
            sums = np.zeros(1000)
            np.add.at(sums, rng.integers(0, 1000, draws), scores)
            floor = unevenness_score_floor(scores.sum(), np.square(scores).sum(), num_experts=1000)
            seen.append((unevenness(sums), floor))
        measured, said = np.mean(seen, axis=0)
        assert said == pytest.approx(measured, rel=within)

    def test_rank_curve(self):
        """A uniform draw lies on the curve of one, within 1 of the count at every rank."""
        rng = np.random.default_rng(2)
        counts = np.bincount(rng.integers(0, 10_000, 50_000), minlength=10_000)
        ranks, found = rank_curve(counts)
        expected = uniform_rank_curve(ranks, draws=50_000, num_experts=10_000)
        assert np.abs(found - expected)[1:].max() <= 1


class TestPoissonTail:
    @pytest.mark.parametrize("mean", [0.1, 1.0, 7.5, 40.0])
    @pytest.mark.parametrize("count", [0, 1, 3, 8, 40, 60])
    def test_equals_the_sum(self, mean, count):
        """One minus the chances of all smaller counts, or the sum of all larger ones."""
        chances = [
            math.exp(c * math.log(mean) - mean - math.lgamma(c + 1)) for c in range(count, 400)
        ]
        assert poisson_tail(count, mean=mean) == pytest.approx(math.fsum(chances), rel=1e-9)

    def test_far_out(self):
        """Chances far below those of a difference from 1 are exact too."""
        assert poisson_tail(300, mean=10.0) == pytest.approx(1.53e-319, rel=0.02, abs=0)


class TestLeastSureCount:
    def test_is_the_least(self):
        """At 1 draw per expert 12 draws of one in a million are no chance, 11 may be."""
        least = least_sure_count(MILLION, num_experts=MILLION, threshold=5.0)
        assert poisson_tail(least, mean=1.0) * MILLION < 1e-3
        assert poisson_tail(least - 1, mean=1.0) * MILLION >= 1e-3

    def test_is_hot_in_any_case(self):
        """With many draws chance plays no part, and what is hot is sure."""
        assert least_sure_count(100 * MILLION, num_experts=MILLION, threshold=5.0) == 501


class TestLimits:
    def test_nothing_drawn_has_no_floor(self):
        """Without draws every floor is undefined."""
        assert math.isnan(coverage_floor(0, num_experts=8))
        assert math.isnan(unevenness_floor(0, num_experts=8))
        assert math.isnan(hot_indices_floor(0, num_experts=8, threshold=5.0))
        assert math.isnan(dead_sub_keys_floor(0, sub_keys=8))
        assert math.isnan(mutual_information_floor(0, rows=2, columns=4))
        assert math.isnan(unevenness_score_floor(0.0, 0.0, num_experts=8))
        assert uniform_rank_curve(np.array([1, 2]), draws=0, num_experts=2).tolist() == [0, 0]

    def test_the_expansion_meets_the_sum(self):
        """Where the sum over counts gives way to its expansion, both say the same to 1e-9."""
        below = unevenness_floor(199_999, num_experts=1)
        above = unevenness_floor(200_001, num_experts=1)
        assert above == pytest.approx(below * 199_999 / 200_001, rel=1e-9)

    def test_overlap_by_chance(self):
        """Two independent halves overlap in a third of what is in either."""
        assert hot_overlap_floor(500, num_experts=1000) == pytest.approx(1 / 3)

    def test_counts_are_counts(self):
        """A negative number of draws is refused."""
        with pytest.raises(ValueError, match="both are counts"):
            coverage_floor(-1, num_experts=8)
