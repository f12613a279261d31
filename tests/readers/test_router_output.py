import copy
import itertools

import pytest
import torch

import moetrace
from moetrace.readers import RouterReader
from moetrace.sinks import MemorySink
from tests.oracle import Oracle
from tests.tiny import FAMILIES, ScriptedRouter, batch, seeded

IDS = torch.tensor([[0, 1], [0, 2]])
LOGITS = torch.zeros(2, 4)
WEIGHTS = torch.full((2, 2), 0.5)
READER = RouterReader(4, top_k=2)


class TestIds:
    @pytest.mark.parametrize("order", list(itertools.permutations([LOGITS, WEIGHTS, IDS])))
    def test_takes_the_three_in_any_order(self, order):
        """Types and shapes say which tensor is which."""
        routing = READER.read(torch.nn.Identity(), (), {}, tuple(order))
        assert routing.topk_expert_ids_TK is IDS
        assert routing.logits_TE is LOGITS
        assert routing.topk_weights_TK is WEIGHTS

    def test_all_experts_chosen(self):
        """Where K equals E logits and weights look alike, and the first of them is the logits."""
        first, second = torch.zeros(2, 2), torch.ones(2, 2)
        reader = RouterReader(2, top_k=2)
        routing = reader.read(torch.nn.Identity(), (), {}, (first, second, IDS))
        assert routing.logits_TE is first
        assert routing.topk_weights_TK is second

    def test_a_one_hot_mask_is_no_list_of_ids(self):
        """An integer mask over experts beside tensors of its shape is read as a map."""
        mask = torch.tensor([[0, 1], [1, 0]])
        routing = RouterReader(2).read(torch.nn.Identity(), (), {}, (mask, torch.zeros(2, 2)))
        assert routing.topk_expert_ids_TK is None
        assert routing.routing_map_TE is mask

    def test_the_skip_class(self):
        """A skip that was rewritten to expert 0 with weight 0 goes to a class of its own."""
        weights = torch.tensor([[0.5], [0.0]])
        reader = RouterReader(4, top_k=1, skips=True)
        output = (LOGITS, weights, torch.tensor([[0], [0]]))
        routing = reader.read(torch.nn.Identity(), (), {}, output)
        assert routing.topk_expert_ids_TK.tolist() == [[0], [3]]

    @pytest.mark.parametrize(
        "output",
        [
            (LOGITS, IDS),
            (LOGITS, WEIGHTS),
            (LOGITS, WEIGHTS, IDS.float()),
            (LOGITS, WEIGHTS, IDS, IDS),
            LOGITS,
            (LOGITS, WEIGHTS[:1], IDS),
            (LOGITS[0], WEIGHTS[0], IDS[0]),
            (((LOGITS, WEIGHTS, IDS),),),
            {"logits": LOGITS, "ids": IDS},
            (LOGITS, LOGITS),
        ],
    )
    def test_leaves_what_is_something_else(self, output):
        """A token indexer, a mask, a nested or a flat output is no routing."""
        assert READER.read(torch.nn.Identity(), (), {}, output) is None


class TestMaps:
    def test_combine_weights_beside_declared_logits(self):
        """Scores with exact zeros are the map and the weights, beside the declared logits."""
        scores = torch.tensor([[0.0, 0.7, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0]])
        reader = RouterReader(4, logits_index=1)
        routing = reader.read(torch.nn.Identity(), (), {}, (scores, LOGITS))
        assert routing.routing_map_TE is scores
        assert routing.logits_TE is LOGITS

    def test_combine_weights_outrank_flags(self):
        """A mask of the first choice beside combine weights of all choices is not the whole map."""
        first = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0]])
        combine = torch.tensor([[0.2, 0.8, 0.0, 0.0], [0.9, 0.0, 0.0, 0.1]])
        reader = RouterReader(4, logits_index=2)
        routing = reader.read(torch.nn.Identity(), (), {}, (first, combine, LOGITS))
        assert routing.routing_map_TE is combine

    def test_a_bool_map_needs_no_declaration(self):
        """Probabilities beside a bool map (Megatron) are counted by the map."""
        flags = torch.tensor([[True, False, False, True], [False, True, True, False]])
        routing = RouterReader(4).read(torch.nn.Identity(), (), {}, (torch.rand(2, 4), flags))
        assert routing.routing_map_TE is flags


class TestLogits:
    def test_top_k_of_declared_logits(self):
        """A router that returns its declared logits only chooses the K highest."""
        logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
        reader = RouterReader(4, top_k=2, logits_index=0)
        routing = reader.read(torch.nn.Identity(), (), {}, logits)
        assert routing.topk_expert_ids_TK.tolist() == [[1, 3]]

    def test_undeclared_logits_are_left_alone(self):
        """Who chooses by bare logits is not known, so that nothing is counted."""
        assert RouterReader(4, top_k=2).read(torch.nn.Identity(), (), {}, LOGITS) is None


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    def test_counts_what_the_documented_rule_decides(self, name):
        """Counts, mean entropy and probabilities equal a recomputation from the weights."""
        model = copy.deepcopy(seeded(name))
        plain = copy.deepcopy(model)
        sink = MemorySink()
        tracer = moetrace.attach(model, every=1, sinks=[sink])
        oracle = Oracle(plain, [(site.name, site.path) for site in tracer.sites])
        ids, mask = batch(0)
        tracer.on_step_begin()
        model(input_ids=ids, attention_mask=mask)
        tracer.on_step_end()
        tracer.close()
        with oracle.says("train", mask):
            plain(input_ids=ids, attention_mask=mask)
        (snapshot,) = sink.snapshots
        assert set(snapshot.layers) == set(oracle.counts["train"])
        for stats in snapshot:
            truth = oracle.counts["train"][stats.layer]
            assert stats.tokens_per_expert.tolist() == truth.tolist()
            tokens = oracle.tokens["train"][stats.layer]
            assert (stats.tokens, stats.masked) == (tokens, 5)
            entropy = oracle.entropy["train"][stats.layer] / tokens
            assert stats.mean("entropy_sum") == pytest.approx(entropy, rel=1e-5)
            probs = oracle.probs["train"][stats.layer]
            assert stats.decoded("prob_sum") == pytest.approx(probs, rel=1e-5)

    def test_sites_are_the_moe_blocks(self, name):
        """Each MoE layer is a site named by its block, with E = 8 and K = 2; no dense one is."""
        sites = moetrace.discover(seeded(name))
        dense = 1 if name in ("DeepseekV3", "Glm4Moe") else 0
        layers = seeded(name).config.num_hidden_layers
        names = [f"model.layers.{index}.mlp" for index in range(dense, layers)]
        assert [site.name for site in sites if site.taken] == names
        assert {(site.num_experts, site.top_k) for site in sites if site.taken} == {(8, 2)}

    def test_scoring_is_known_at_attach(self, name):
        """Sigmoid routers are told from softmax routers before any forward."""
        expected = "sigmoid" if name in ("DeepseekV3", "Glm4Moe") else "softmax"
        assert {site.scoring for site in moetrace.discover(seeded(name))} == {expected}


class TestDiscover:
    def test_a_dense_model_has_no_site(self):
        """No module of a dense transformer is taken."""
        from tests.tiny import SHAPE

        transformers = pytest.importorskip("transformers")
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
        assert [site for site in moetrace.discover(model) if site.taken] == []

    def test_a_shared_router_is_one_site_with_aliases(self):
        """A router that hangs under two names is found once, with both."""
        from tests.tiny import ScriptedModel

        model = ScriptedModel([[0, 1]], [[0, 1]], num_experts=4)
        model.blocks[1].gate = model.blocks[0].gate
        (site,) = moetrace.discover(model)
        assert (site.name, site.aliases) == ("blocks.0", ("blocks.1",))

    def test_wrappers_do_not_show_in_names(self):
        """A compiled model's sites are called as the user calls them."""
        from tests.tiny import ScriptedModel

        model = torch.compile(ScriptedModel([[0, 1]], num_experts=4))
        (site,) = moetrace.discover(model)
        assert (site.name, site.path) == ("blocks.0", "_orig_mod.blocks.0.gate")

    def test_two_routers_in_one_block_have_two_names(self):
        """Where a block holds two routers, each is named by itself."""
        from torch import nn

        from tests.tiny import StackedExperts

        block = nn.Module()
        block.text = ScriptedRouter([[0]], num_experts=4)
        block.vision = ScriptedRouter([[0]], num_experts=4)
        block.experts = StackedExperts(4)
        names = [site.name for site in moetrace.discover(nn.ModuleDict({"block": block}))]
        assert names == ["block.text", "block.vision"]
