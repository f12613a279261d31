"""Floors against the truth: all outcomes where they can be listed, simulation where not."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from moetrace import metrics
from moetrace.metrics import expected_maximum

FLOORS = {
    "max_vio": (metrics.max_vio, metrics.max_vio_floor),
    "load_cv": (metrics.load_cv, metrics.load_cv_floor),
    "avg_vio": (metrics.avg_vio, metrics.avg_vio_floor),
    "load_gini": (metrics.load_gini, metrics.load_gini_floor),
    "dead_experts": (metrics.dead_experts, metrics.dead_experts_floor),
}


def outcomes(tokens, experts, top_k):
    """Every sorted vector of counts that a uniform router can give, with its probability."""
    choices = list(combinations(range(experts), top_k))
    ways = Counter({(0,) * experts: 1})
    for _ in range(tokens):
        after = Counter()
        for before, weight in ways.items():
            for choice in choices:
                step = tuple(sorted(c + (e in choice) for e, c in enumerate(before)))
                after[step] += weight
        ways = after
    return {step: weight / len(choices) ** tokens for step, weight in ways.items()}


def simulate(tokens, experts, top_k, *, windows):
    """Counts of ``windows`` windows in which each token picks K distinct experts uniformly."""
    rng = np.random.default_rng(20261121)
    for _ in range(windows):
        order = rng.random((tokens, experts), dtype=np.float32)
        ids = np.argpartition(order, top_k - 1, axis=1)[:, :top_k]
        yield np.bincount(ids.ravel(), minlength=experts)


class TestEnumerated:
    @pytest.mark.parametrize("name", ["avg_vio", "load_gini", "dead_experts"])
    @pytest.mark.parametrize(
        ("tokens", "experts", "top_k"), [(1, 4, 2), (3, 3, 2), (5, 4, 3), (6, 5, 2), (4, 8, 4)]
    )
    def test_closed_forms_are_exact(self, name, tokens, experts, top_k):
        """Mean violation, Gini and dead experts are expectations, not approximations."""
        metric, floor = FLOORS[name]
        truth = sum(p * metric(np.array(c)) for c, p in outcomes(tokens, experts, top_k).items())
        found = floor(tokens, num_experts=experts, top_k=top_k)
        assert found == pytest.approx(truth, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize(
        ("tokens", "experts", "top_k"),
        [(2, 2, 1), (12, 2, 1), (7, 4, 1), (8, 8, 1), (1, 8, 2), (1, 5, 4)],
    )
    def test_max_vio_is_exact_for_one_choice_or_one_token(self, tokens, experts, top_k):
        """For K = 1 the counts are a multinomial, and the sum over the lattice is exact."""
        truth = sum(
            p * metrics.max_vio(np.array(c)) for c, p in outcomes(tokens, experts, top_k).items()
        )
        found = metrics.max_vio_floor(tokens, num_experts=experts, top_k=top_k)
        assert found == pytest.approx(truth, rel=1e-9)

    @pytest.mark.parametrize(
        ("name", "experts", "top_k", "percent"),
        [
            ("max_vio", 3, 2, 7.0),
            ("max_vio", 4, 2, 4.0),
            ("max_vio", 4, 3, 4.0),
            ("max_vio", 6, 3, 4.0),
            ("max_vio", 8, 2, 2.0),
            ("max_vio", 8, 4, 2.0),
            ("load_cv", 2, 1, 25.4),
            ("load_cv", 4, 2, 7.0),
            ("load_cv", 8, 1, 1.0),
            ("load_cv", 8, 2, 1.0),
            ("load_cv", 8, 4, 1.0),
        ],
    )
    def test_approximations_keep_their_tolerance(self, name, experts, top_k, percent):
        """With 1 to 7 tokens, where they are worst, they are as good as their docstrings say."""
        metric, floor = FLOORS[name]
        for tokens in range(1, 8):
            rows = outcomes(tokens, experts, top_k).items()
            truth = sum(p * metric(np.array(c)) for c, p in rows)
            found = floor(tokens, num_experts=experts, top_k=top_k)
            assert found == pytest.approx(truth, rel=percent / 100), tokens


class TestSimulated:
    @pytest.mark.parametrize(
        ("tokens", "experts", "top_k", "windows"),
        [
            (40, 4, 3, 8000),
            (10, 16, 2, 8000),
            (40, 16, 4, 4000),
            (500, 16, 8, 1000),
            (30, 64, 6, 2000),
            (400, 64, 6, 400),
            (3, 128, 1, 4000),
            (20, 128, 8, 1500),
            (150, 128, 8, 400),
            (600, 128, 8, 400),
        ],
    )
    @pytest.mark.parametrize("name", ["avg_vio", "load_cv", "load_gini", "max_vio"])
    def test_floor_is_the_mean_of_a_uniform_router(self, name, tokens, experts, top_k, windows):
        """The mean of simulated windows is the floor, within 2 % and 4 standard errors."""
        metric, floor = FLOORS[name]
        seen = [metric(row) for row in simulate(tokens, experts, top_k, windows=windows)]
        found = floor(tokens, num_experts=experts, top_k=top_k)
        error = float(np.std(seen)) / math.sqrt(windows)
        assert error < 0.01 * found
        assert abs(np.mean(seen) - found) < 0.02 * found + 4 * error

    def test_at_the_size_of_a_real_step(self):
        """128 experts, top-8, 16 384 tokens: MaxVio of a uniform router is 0.080 +- 0.002."""
        seen = [metrics.max_vio(row) for row in simulate(16384, 128, 8, windows=40)]
        found = metrics.max_vio_floor(16384, num_experts=128, top_k=8)
        assert round(found, 3) == 0.080
        assert np.mean(seen) == pytest.approx(found, abs=0.006)


class TestEdges:
    @pytest.mark.parametrize("name", sorted(FLOORS))
    def test_all_experts_chosen_leaves_no_noise(self, name):
        """With K = E every expert gets every token: there is nothing left to chance."""
        assert FLOORS[name][1](7, num_experts=4, top_k=4) == 0.0

    @pytest.mark.parametrize("name", sorted(FLOORS))
    def test_without_tokens(self, name):
        """A window without tokens has no floor."""
        assert math.isnan(FLOORS[name][1](0, num_experts=4, top_k=2))

    @pytest.mark.parametrize("name", sorted(FLOORS))
    @pytest.mark.parametrize(("tokens", "top_k"), [(-1, 2), (5, 0), (5, 5)])
    def test_refuses_what_is_no_top_k(self, name, tokens, top_k):
        """Negative tokens, or K outside [1, E], are a caller's slip."""
        with pytest.raises(ValueError, match="found"):
            FLOORS[name][1](tokens, num_experts=4, top_k=top_k)

    @pytest.mark.parametrize("name", sorted(FLOORS))
    def test_more_tokens_mean_less_noise(self, name):
        """A floor never rises with the window, across the border of its two forms as well."""
        floor = FLOORS[name][1]
        tokens = [*range(1, 600, 7), 10**4, 10**5, 10**6, 10**9, 10**15]
        found = [floor(t, num_experts=64, top_k=6) for t in tokens]
        assert found == sorted(found, reverse=True)
        assert found[-1] < 1e-6

    def test_a_million_experts(self):
        """The floors of a million experts are as finite as those of four."""
        for _, floor in FLOORS.values():
            assert 0 < floor(10**6, num_experts=10**6, top_k=1) < 10**6


class TestTwoForms:
    @pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (8, 2), (16, 8), (128, 8), (4096, 1)])
    def test_agree_where_they_meet(self, experts, top_k):
        """At the border the series and the Fourier sum differ by less than 1 % of the floor."""
        p = top_k / experts
        tokens = math.ceil(expected_maximum.SERIES_FROM / (p * (1 - p)))
        series = expected_maximum._by_series(tokens, experts, p) - tokens * p
        fourier = expected_maximum._by_fourier_sum(tokens, experts, top_k) - tokens * p
        assert series == pytest.approx(fourier, rel=0.01)


class TestDistinctChoices:
    def test_are_steadier_than_a_multinomial(self):
        """K distinct picks vary by sqrt(1 - K/E) of what K * T independent draws would."""
        distinct = metrics.load_cv_floor(1000, num_experts=8, top_k=4)
        independent = metrics.load_cv_floor(4000, num_experts=8, top_k=1)
        ratio = math.sqrt(1 - 4 / 8) / math.sqrt(1 - 1 / 8)
        assert distinct / independent == pytest.approx(ratio, rel=1e-3)
