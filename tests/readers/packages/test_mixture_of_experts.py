"""mixture_of_experts: dispatch tensors (B, S, E, C), and a gate that is a bare matrix (D, E)."""

import pytest
import torch

import moetrace
from tests.readers.packages.watched import D, E, Model, T, rows_of_a_stack, watch

mixture_of_experts = pytest.importorskip("mixture_of_experts")


class TestMixtureOfExperts:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("policy", ["random", "all", "none"])
    def test_counts_what_its_experts_get(self, training, policy):
        """Counts are the rows that each expert got, whatever becomes of the second choice."""
        block = mixture_of_experts.MoE(
            D, num_experts=E, second_policy_train=policy, second_policy_eval=policy
        )
        keep = {"layers.0.moe.experts": rows_of_a_stack}
        watched = watch(Model(block), torch.randn(2, 12, D), keep=keep, training=training)
        (true,) = watched.seen["layers.0.moe.experts"]
        (stats,) = watched.layers.values()
        assert stats.layer == "layers.0.moe"
        assert stats.tokens_per_expert.tolist() == true
        assert (stats.tokens, stats.top_k, stats.dropped) == (T, 2, 2 * T - sum(true))

    def test_shows_no_logits(self):
        """Its gate multiplies a bare matrix and returns no logits, and no entropy is made up."""
        watched = watch(
            Model(mixture_of_experts.MoE(D, num_experts=E)), torch.randn(2, 12, D), keep={}
        )
        (stats,) = watched.layers.values()
        assert stats.scoring == "none"
        assert stats.withheld()["routing_entropy"] == "the router shows no logits"

    def test_as_wide_as_it_has_experts(self):
        """A square gate matrix is read by its columns all the same."""
        block = mixture_of_experts.MoE(E, num_experts=E)
        keep = {"layers.0.moe.experts": rows_of_a_stack}
        watched = watch(Model(block), torch.randn(2, 12, E), keep=keep)
        (stats,) = watched.layers.values()
        assert [stats.tokens_per_expert.tolist()] == watched.seen["layers.0.moe.experts"]


class TestHierarchy:
    def test_counts_the_outer_choice(self):
        """The choice among groups of experts is counted by the rows that each group gets."""
        block = mixture_of_experts.HeirarchicalMoE(D, num_experts=(4, 4))
        keep = {"layers.0.moe.gate_inner": rows_of_a_stack}
        watched = watch(Model(block), torch.randn(2, 12, D), keep=keep)
        (stats,) = watched.layers.values()
        assert stats.num_experts == 4
        assert [stats.tokens_per_expert.tolist()] == watched.seen["layers.0.moe.gate_inner"]

    def test_names_the_inner_choice_as_not_readable(self):
        """The choice within each group is listed, with what stands in its way."""
        model = Model(mixture_of_experts.HeirarchicalMoE(D, num_experts=(4, 4)))
        (inner,) = [site for site in moetrace.discover(model) if not site.taken]
        assert inner.path == "layers.0.moe.gate_inner"
        assert "a matrix for each of 4 groups" in inner.reason
