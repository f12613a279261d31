import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace import metrics


class TestMeansPerToken:
    @pytest.mark.parametrize(
        "metric", [metrics.routing_entropy, metrics.confidence, metrics.margin, metrics.z_loss]
    )
    def test_is_the_sum_over_tokens(self, metric):
        """A window's mean is its sum over its tokens, not a mean of means; NaN without tokens."""
        assert metric(3.0, tokens=4) == 0.75
        assert math.isnan(metric(0.0, tokens=0))


class TestRoutingEntropyNormalized:
    def test_uniform_is_one(self):
        """A router that gives all 8 experts the same probability has ln 8 nats, that is 1."""
        found = metrics.routing_entropy_normalized(3 * math.log(8), tokens=3, num_experts=8)
        assert found == pytest.approx(1.0)

    def test_a_single_expert_has_none(self):
        """ln 1 is 0, so for one expert there is nothing to divide by."""
        assert math.isnan(metrics.routing_entropy_normalized(0.0, tokens=3, num_experts=1))


class TestLoadBalancingLoss:
    @pytest.mark.parametrize("top_k", [1, 2, 4])
    def test_uniform_is_one_for_every_top_k(self, top_k):
        """Even counts and even probabilities give 1, however many experts a token picks."""
        tokens, experts = 8, 4
        loss = metrics.load_balancing_loss(
            np.full(experts, tokens * top_k // experts),
            np.full(experts, tokens / experts),
            assignments=tokens * top_k,
            tokens=tokens,
        )
        assert loss == 1.0

    def test_collapse_is_the_number_of_experts(self):
        """All tokens and all probability on one of 8 experts give 8."""
        one = np.array([5, 0, 0, 0, 0, 0, 0, 0])
        loss = metrics.load_balancing_loss(one, one.astype(float), assignments=5, tokens=5)
        assert loss == 8.0

    def test_without_tokens(self):
        """Without a scored token there is no probability, and so no loss."""
        none = np.zeros(2)
        assert math.isnan(
            metrics.load_balancing_loss(none.astype(int), none, assignments=0, tokens=0)
        )

    def test_refuses_shapes_that_differ(self):
        """Counts and probabilities are of the same experts."""
        with pytest.raises(ValueError, match="both are"):
            metrics.load_balancing_loss(np.ones(2, int), np.ones(3), assignments=2, tokens=2)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 9))
    def test_equals_a_loop_over_tokens(self, seed, top_k, experts):
        """Sums of a window give E * sum_e f_e P_e of the tokens one by one."""
        top_k = min(top_k, experts)
        probs = np.random.default_rng(seed).dirichlet(np.ones(experts), size=12)
        chosen = np.argsort(-probs, axis=1)[:, :top_k]
        loss = 0.0
        for expert in range(experts):
            share = sum(expert in row for row in chosen.tolist()) / (12 * top_k)
            loss += experts * share * sum(row[expert] for row in probs.tolist()) / 12
        found = metrics.load_balancing_loss(
            np.bincount(chosen.ravel(), minlength=experts),
            probs.sum(axis=0),
            assignments=12 * top_k,
            tokens=12,
        )
        assert found == pytest.approx(loss)
