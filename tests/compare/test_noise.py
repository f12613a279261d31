"""What two runs differ by through chance alone, against simulation."""

import math

import numpy as np
import pytest

from moetrace.compare.noise import expert_noise, load_noise, times_noise, wobble
from moetrace.metrics import load_change
from moetrace.routing_stats import RoutingStats
from tests.report.made import stats


def routed(tokens: int, *, experts: int, top_k: int, rng: np.random.Generator) -> RoutingStats:
    """What a uniform top-K router does with so many tokens."""
    order = rng.random((tokens, experts)).argpartition(top_k, axis=1)[:, :top_k]
    return stats("a", np.bincount(order.ravel(), minlength=experts).tolist(), top_k=top_k)


class TestLoadNoise:
    @pytest.mark.parametrize(("first", "second"), [(1000, 1000), (400, 2000)])
    def test_is_what_two_uniform_routers_differ_by(self, first: int, second: int) -> None:
        """16 experts, K = 2, also with different numbers of tokens: within 5 % of 200 pairs."""
        rng = np.random.default_rng(5)
        pairs = [
            [routed(tokens, experts=16, top_k=2, rng=rng) for tokens in (first, second)]
            for _ in range(200)
        ]
        moved = [load_change(a.tokens_per_expert, b.tokens_per_expert) for a, b in pairs]
        assert np.mean(moved) == pytest.approx(load_noise(*pairs[0]), rel=0.05)

    def test_is_not_known_where_k_differs_or_nothing_was_routed(self) -> None:
        """Two kinds of choice have no common chance."""
        one, two = stats("a", [4, 4]), stats("a", [4, 4], top_k=2)
        assert load_noise(one, two) is None
        assert load_noise(one, stats("a", [0, 0])) is None


class TestExpertNoise:
    def test_is_the_spread_of_a_share(self) -> None:
        """300 pairs of windows in which an expert is chosen by 1 of 8: within 15 %."""
        rng = np.random.default_rng(6)
        pairs = [
            [routed(tokens, experts=8, top_k=1, rng=rng) for tokens in (500, 900)]
            for _ in range(300)
        ]
        shares = [[s.tokens_per_expert[0] / s.tokens for s in pair] for pair in pairs]
        spread = np.std([b - a for a, b in shares])
        assert float(expert_noise(*pairs[0])[0]) == pytest.approx(spread, rel=0.15)


class TestWobble:
    def test_is_the_standard_deviation_of_independent_differences(self) -> None:
        """Of 20,000 normals, within 3 %."""
        drawn = np.random.default_rng(7).normal(0, 2.0, 20_000)
        assert wobble(drawn.tolist()) == pytest.approx(2.0, rel=0.03)

    def test_a_drift_and_a_jump_are_no_noise(self) -> None:
        """A straight line wobbles by its step; one jump does not show at all."""
        assert wobble([0.0] * 10 + [5.0] * 10) == 0.0
        assert wobble([float(n) for n in range(10)]) == pytest.approx(1.048, abs=1e-3)

    def test_needs_five_differences(self) -> None:
        """NaN is none; four are too few."""
        assert wobble([1.0, 2.0, math.nan, 1.0, 2.0]) is None
        assert wobble([1.0, 2.0, math.nan, 1.0, 2.0, 1.0]) is not None


class TestTimesNoise:
    @pytest.mark.parametrize(
        ("difference", "noise", "expected"),
        [(-1.0, 0.5, 2.0), (1.0, 0.0, math.inf), (0.0, 0.0, 0.0), (None, 1.0, None)],
    )
    def test_is_the_size_over_the_noise(
        self, difference: float | None, noise: float, expected: float | None
    ) -> None:
        """Without any noise a difference is infinitely large, and no difference is none."""
        assert times_noise(difference, noise) == expected
