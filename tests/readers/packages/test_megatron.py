"""Megatron-Core's TopKRouter: dense probabilities (T, E) beside a bool map, sequence first."""

import pytest
import torch
from torch import nn

from tests.readers.packages.watched import D, E, Model, T, watch
from tests.tiny import StackedExperts

router = pytest.importorskip("megatron.core.transformer.moe.router")


class Layer(nn.Module):
    """Megatron's router before experts that keep what they are called with; the rest needs CUDA."""

    def __init__(self, own):
        super().__init__()
        self.router = own
        self.experts = StackedExperts(E)

    def forward(self, hidden):
        """Hidden states ``(S, B, D)``, as Megatron has them."""
        _, routing_map = self.router(hidden)
        self.experts(routing_map.float())
        return hidden


@pytest.fixture
def routers(monkeypatch):
    """Makes the package's router on a CPU, where it asks for the current CUDA device."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.transformer_config import TransformerConfig

    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(moe_utils, "te_general_gemm", None, raising=False)
    groups = ProcessGroupCollection()
    for name in ("tp", "cp", "tp_cp", "tp_dp_cp"):
        setattr(groups, name, None)

    def make(**settings):
        config = TransformerConfig(
            num_layers=1,
            hidden_size=D,
            num_attention_heads=4,
            num_moe_experts=E,
            moe_router_topk=2,
            moe_aux_loss_coeff=0.0,
            moe_router_load_balancing_type="none",
            use_cpu_initialization=True,
            **settings,
        )
        own = router.TopKRouter(config, groups)
        if own.expert_bias is not None:
            own.expert_bias.copy_(torch.randn(E))
        return own

    return make


def per_expert(routing_map):
    """Assignments per expert of what the experts are called with."""
    return (routing_map != 0).sum(0).tolist()


class TestTopKRouter:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"moe_router_pre_softmax": True},
            {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True},
            {"moe_router_num_groups": 2, "moe_router_group_topk": 1},
        ],
    )
    def test_counts_its_map(self, routers, settings):
        """Counts are those of the map that the experts get, by bias and groups too."""
        model = Model(Layer(routers(**settings)))
        watched = watch(model, torch.randn(12, 2, D), keep={"layers.0.moe.experts": per_expert})
        (stats,) = watched.layers.values()
        assert stats.layer == "layers.0.moe"
        assert [stats.tokens_per_expert.tolist()] == watched.seen["layers.0.moe.experts"]
        assert (stats.tokens, stats.top_k, stats.dropped) == (T, 2, 0)

    def test_counts_what_a_capacity_drops(self, routers):
        """With a capacity factor the map is what is left, and the rest is dropped."""
        model = Model(Layer(routers(moe_expert_capacity_factor=0.5)))
        watched = watch(model, torch.randn(12, 2, D), keep={"layers.0.moe.experts": per_expert})
        (stats,) = watched.layers.values()
        (true,) = watched.seen["layers.0.moe.experts"]
        assert stats.tokens_per_expert.tolist() == true
        assert (stats.top_k, stats.dropped) == (2, 2 * T - sum(true))
        assert stats.dropped > 0

    def test_needs_no_experts_beside_it(self, routers):
        """It says itself how many of how many experts it chooses, so it is found alone too."""
        model = nn.ModuleDict({"moe": nn.ModuleDict({"router": routers()})})
        model.forward = model["moe"]["router"].__call__
        watched = watch(model, torch.randn(12, 2, D), keep={})
        assert [site.name for site in watched.sites] == ["moe"]
