"""torchtitan: weights first, ids second, and counts per expert; no logits are returned."""

import pytest
import torch
from torch import nn

from tests.readers.packages.watched import D, E, Model, T, entropy, watch

moe = pytest.importorskip("torchtitan.models.moe.moe")


@pytest.fixture(autouse=True)
def _histogram_of_ids(monkeypatch):
    """On a CPU torch makes no histogram of integers, which torchtitan asks for."""
    histogram = torch.histc
    monkeypatch.setattr(torch, "histc", lambda ids, **o: histogram(ids.float(), **o).long())


def model(**settings):
    """Two layers with 8 experts, 2 per token, and a bias that decides."""
    arguments = moe.MoEArgs(num_experts=E, top_k=2, use_grouped_mm=False, **settings)
    blocks = [moe.MoE(arguments, D, 24) for _ in range(2)]
    for block in blocks:
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.3)
        block.expert_bias.normal_(std=0.3)
    return Model(*blocks)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
class TestTorchtitan:
    def test_counts_what_its_experts_get(self, score):
        """Counts are those that the experts are called with, by the bias and not by the logits."""
        keep = {f"layers.{i}.moe.experts": lambda x, counts: counts.tolist() for i in range(2)}
        watched = watch(model(score_func=score), torch.randn(2, 12, D), keep=keep)
        for index in range(2):
            stats = watched.layers[f"layers.{index}.moe"]
            assert [stats.tokens_per_expert.tolist()] == watched.seen[f"layers.{index}.moe.experts"]
            assert (stats.tokens, stats.top_k, stats.dropped) == (T, 2, 0)

    def test_scores_are_those_of_its_gate(self, score):
        """The entropy is that of the gate's own scores, normalised; the bias is left out."""
        own = model(score_func=score)
        weight = own.layers[0]["moe"].router.gate.weight.detach()
        keep = {"layers.0.moe.router": lambda x, bias: x @ weight.T}
        watched = watch(own, torch.randn(2, 12, D), keep=keep)
        (logits,) = watched.seen["layers.0.moe.router"]
        stats = watched.layers["layers.0.moe"]
        assert stats.scoring == score
        true = entropy(logits, getattr(torch, score))
        assert stats.mean("entropy_sum") == pytest.approx(true, abs=1e-5)

    def test_groups_limit_the_choice(self, score):
        """A limit on groups of experts is counted as it decides."""
        own = model(score_func=score, num_expert_groups=2, num_limited_groups=1)
        keep = {"layers.0.moe.experts": lambda x, counts: counts.tolist()}
        watched = watch(own, torch.randn(2, 12, D), keep=keep)
        stats = watched.layers["layers.0.moe"]
        assert [stats.tokens_per_expert.tolist()] == watched.seen["layers.0.moe.experts"]
