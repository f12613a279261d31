"""DeepSpeed: routes (K, T) of int32 with -1 for what was dropped; its gate's linear never runs."""

import pytest
import torch
from torch import nn

from tests.readers.packages.watched import D, E, Model, T, watch

layer = pytest.importorskip("deepspeed.moe.layer")


def rows(hidden):
    """Rows per expert of ``(ranks, experts, slots, D)``."""
    return (hidden.abs().sum(-1) != 0).sum((0, 2)).tolist()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 3])
class TestDeepSpeed:
    def test_counts_what_its_experts_get(self, top_k, training):
        """Counts are the rows of each expert after dropping, under the name that the user gave."""
        model = Model(layer.MoE(D, nn.Linear(D, D), num_experts=E, k=top_k, min_capacity=1))
        path = "layers.0.moe.deepspeed_moe.experts"
        watched = watch(model, torch.randn(2, 12, D), keep={path: rows}, training=training)
        (stats,) = watched.layers.values()
        (true,) = watched.seen[path]
        assert stats.layer == "layers.0.moe"
        assert stats.tokens_per_expert.tolist() == true
        assert (stats.tokens, stats.top_k) == (T, top_k)
        assert stats.dropped == top_k * T - sum(true) > 0

    def test_nothing_is_dropped_where_nothing_may_be(self, top_k, training):
        """Without a limit its own counts, which are of before it, are ours."""
        block = layer.MoE(D, nn.Linear(D, D), num_experts=E, k=top_k, drop_tokens=False)
        watched = watch(Model(block), torch.randn(2, 12, D), keep={}, training=training)
        (stats,) = watched.layers.values()
        assert stats.tokens_per_expert.tolist() == block.deepspeed_moe.exp_counts.tolist()
        assert stats.dropped == 0


def test_gate_weights_are_those_of_its_routes():
    """Each expert's mixing weights add up to what the gate gave it, dropped choices left out."""
    model = Model(layer.MoE(D, nn.Linear(D, D), num_experts=E, k=2, min_capacity=1))
    returned = []
    gate = model.layers[0]["moe"].deepspeed_moe.gate
    hook = gate.register_forward_hook(lambda module, args, output: returned.append(output))
    watched = watch(model, torch.randn(2, 12, D), keep={})
    hook.remove()
    ids, weights = returned[0][3], returned[0][5]
    true = [float(weights[ids == expert].detach().double().sum()) for expert in range(E)]
    (stats,) = watched.layers.values()
    assert stats.decoded("gate_weight_sum") == pytest.approx(true, abs=1e-5)
