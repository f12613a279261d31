"""st_moe_pytorch: dispatch and combine tensors (B, S, E, C), a random second expert."""

import pytest
import torch

from tests.readers.packages.watched import D, E, Model, T, entropy, rows_of_a_stack, watch

st_moe_pytorch = pytest.importorskip("st_moe_pytorch")


def blocks():
    """Two layers of the package, with its own defaults but for the number of experts."""
    return Model(*(st_moe_pytorch.MoE(dim=D, num_experts=E) for _ in range(2)))


def rows(hidden):
    """Rows per expert; the package puts the batch first."""
    return rows_of_a_stack(hidden.transpose(0, 1))


@pytest.mark.parametrize("training", [True, False])
class TestStMoe:
    def test_counts_what_its_experts_get(self, training):
        """Counts are the rows that each expert got in that same forward, in either mode."""
        keep = {f"layers.{index}.moe.experts": rows for index in range(2)}
        watched = watch(blocks(), torch.randn(2, 12, D), keep=keep, training=training)
        assert list(watched.layers) == ["layers.0.moe", "layers.1.moe"]
        for index in range(2):
            (true,) = watched.seen[f"layers.{index}.moe.experts"]
            stats = watched.layers[f"layers.{index}.moe"]
            assert stats.tokens_per_expert.tolist() == true
            assert (stats.tokens, stats.top_k) == (T, 2)
            assert stats.dropped == 2 * T - sum(true) > 0

    def test_scores_are_those_of_its_gate(self, training):
        """The entropy is that of the logits which the gate inside the router returns."""
        model = blocks()
        weight = model.layers[0]["moe"].gate.to_gates.weight.detach()
        keep = {"layers.0.moe.gate": lambda hidden: hidden @ weight.T}
        watched = watch(model, torch.randn(2, 12, D), keep=keep, training=training)
        (logits,) = watched.seen["layers.0.moe.gate"]
        stats = watched.layers["layers.0.moe"]
        assert stats.scoring == "softmax"
        assert stats.mean("entropy_sum") == pytest.approx(entropy(logits), abs=1e-5)
