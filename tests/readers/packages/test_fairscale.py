"""fairscale: combine (T, E, C) beside a bool dispatch mask, the second expert by Gumbel noise."""

import pytest
import torch
import torch.distributed as dist  # noqa: TID251 - fairscale's layer asks for a group
from torch import nn

from tests.readers.packages.watched import D, E, Model, T, entropy, rows_of_a_stack, watch

moe = pytest.importorskip("fairscale.nn.moe")


@pytest.fixture
def model():
    """A model of two layers, in a group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    experts = [nn.ModuleList(nn.Linear(D, D) for _ in range(E)) for _ in range(2)]
    yield Model(*(moe.MOELayer(moe.Top2Gate(D, E), each) for each in experts))
    dist.destroy_process_group()


@pytest.mark.parametrize("training", [True, False])
class TestFairscale:
    def test_counts_what_its_experts_get(self, model, training):
        """Counts are the rows that each expert got; its slots for 6 tokens are fewer than asked."""
        keep = {
            f"layers.{layer}.moe.experts.{expert}": rows_of_a_stack
            for layer in range(2)
            for expert in range(E)
        }
        watched = watch(model, torch.randn(8, 3, D), keep=keep, training=training)
        for layer in range(2):
            stats = watched.layers[f"layers.{layer}.moe"]
            true = [watched.seen[f"layers.{layer}.moe.experts.{e}"][0][0] for e in range(E)]
            assert stats.tokens_per_expert.tolist() == true
            assert (stats.tokens, stats.top_k) == (T, 2)
            assert stats.dropped == 2 * T - sum(true) > 0

    def test_scores_are_those_of_its_gate(self, model, training):
        """The entropy is that of the logits, without the noise of the second choice."""
        weight = model.layers[0]["moe"].gate.wg.weight.detach()
        keep = {"layers.0.moe.gate": lambda hidden: hidden @ weight.T}
        watched = watch(model, torch.randn(8, 3, D), keep=keep, training=training)
        (logits,) = watched.seen["layers.0.moe.gate"]
        mean = watched.layers["layers.0.moe"].mean("entropy_sum")
        assert mean == pytest.approx(entropy(logits), abs=1e-5)
