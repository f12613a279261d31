import pytest
import torch
from layerwise.errors import RecipeError
from layerwise.nested_model import nest_model, save_nested
from layerwise.pooling import Pool
from layerwise.router import PrecisionRouter

import moetrace
from tests.recipes.precision_router import made


class TestPool:
    def test_a_prefix_is_of_real_tokens(self):
        """S4-21: padding on the left is no part of the first tokens."""
        mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
        seen = Pool.parse("prefix:2").seen(mask).int().tolist()
        assert seen == [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
        scored = Pool.parse("prefix:2").scored(mask).int().tolist()
        assert scored == [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0]]

    def test_all_tokens_are_seen_with_mean(self):
        """S4-21: with mean all real tokens are seen and all but the first are scored."""
        mask = torch.tensor([[1, 1, 1, 0]])
        assert Pool.parse("mean").seen(mask).tolist() == [[True, True, True, False]]
        assert Pool.parse("mean").scored(mask).tolist() == [[False, True, True, False]]

    @pytest.mark.parametrize("text", ["prefix", "prefix:0", "prefix:x", "last:4", ""])
    def test_other_words_are_refused(self, text):
        """S4-17: the message says what there is."""
        with pytest.raises(RecipeError, match="it is 'mean' or 'prefix:K'"):
            Pool.parse(text)

    def test_a_sequence_of_nothing_but_prefix_is_refused(self):
        """S4-17: with 64 tokens of prefix 64 leave nothing to score, and the options are named."""
        with pytest.raises(RecipeError, match="--seq_len 65 or more, or a shorter prefix"):
            Pool.parse("prefix:64").refuse_short(64)


class TestPrecisionRouter:
    def test_its_shape_is_d_128_128_p(self):
        """S4-21: two hidden layers of 128 with ReLU and dropout 0.1, and a row per precision."""
        router = PrecisionRouter(16, [3, 4, 8], pool=Pool(4), start=4)
        sizes = [tuple(part.weight.shape) for part in router.body if hasattr(part, "in_features")]
        assert [*sizes, tuple(router.weight.shape)] == [(128, 16), (128, 128), (3, 128)]
        assert {part.p for part in router.body if isinstance(part, torch.nn.Dropout)} == {0.1}

    def test_a_new_router_chooses_its_start(self):
        """S4-21: whatever it sees, at first it picks the precision it starts at."""
        router = PrecisionRouter(16, [3, 4, 8], pool=Pool(4), start=4)
        _, weights, ids = router(torch.randn(5, 6, 16), torch.ones(5, 6))
        assert ids.tolist() == [[1]] * 5
        assert weights[0].item() == pytest.approx(torch.tensor([0.0, 2, 0]).softmax(-1)[1].item())

    def test_what_follows_the_prefix_changes_no_choice(self, model_folder):
        """S4-21: by default a token after the prefix changes no bits and no earlier logits."""
        model = made.opinionated(made.loaded(model_folder, pool="prefix:4")).eval()
        ids, other = made.tokens(8, 16), made.tokens(8, 16, seed=1)
        changed = torch.cat([ids[:, :8], other[:, 8:]], dim=1)
        before, after = model.infer_forward(ids), model.infer_forward(changed)
        assert before.bits_BL.equal(after.bits_BL)
        torch.testing.assert_close(before.logits[:, :8], after.logits[:, :8])
        assert before.bits_BL.unique().numel() > 1

    def test_with_mean_the_future_changes_the_choice(self, model_folder):
        """S4-21: the mean of all tokens sees what comes, which is why it is not the default."""
        model = made.opinionated(made.loaded(model_folder, pool="mean")).eval()
        ids, other = made.tokens(8, 16), made.tokens(8, 16, seed=1)
        changed = torch.cat([ids[:, :8], other[:, 8:]], dim=1)
        before, after = model.infer_forward(ids), model.infer_forward(changed)
        assert not before.bits_BL.equal(after.bits_BL)
        assert not torch.allclose(before.logits[:, :8], after.logits[:, :8], atol=1e-4)

    def test_moetrace_reads_it_without_being_told(self, model_folder):
        """S4-22: it is a site like any other, whose experts are precisions: no reader is given."""
        model = made.chooses(made.loaded(model_folder), 4, 8)
        with moetrace.attach(model, alerts=None) as tracer:
            tracer.on_step_begin()
            model.train().train_forward(made.tokens(3)).logits.sum().backward()
            tracer.on_step_end()
            snapshot = tracer.flush()
        first, second = snapshot
        assert (first.layer, first.num_experts, first.top_k) == ("base.model.layers.0", 6, 1)
        assert first.tokens_per_expert.tolist() == [0, 3, 0, 0, 0, 0]
        assert second.tokens_per_expert.tolist() == [0, 0, 0, 0, 0, 3]
        assert snapshot.phase == "train"
        assert first.metrics()["routing_entropy"] == 0

    def test_choices_are_of_sequences_where_the_mask_is_of_tokens(self, model_folder):
        """S4-22: in a padded batch a mask with one entry per sequence says that all count."""
        model, ids = made.loaded(model_folder).eval(), made.tokens(3)
        mask = torch.ones_like(ids)
        mask[0, 8:] = 0
        with moetrace.attach(model, alerts=None) as tracer:
            with tracer.tokens(mask=torch.ones(3)):
                model.infer_forward(ids, mask)
            snapshot = tracer.flush()
        assert snapshot["base.model.layers.0"].tokens == 3
        assert snapshot.health == {}

    def test_routers_of_experts_are_not_mixed_up_with_it(self, tmp_path):
        """S4-22: in a model of experts only the precision routers are in the precisions' counts."""
        import transformers

        torch.manual_seed(0)
        config = transformers.MixtralConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        )  # fmt: skip
        base = nest_model(
            transformers.MixtralForCausalLM(config).eval(), group=16, precisions=[3, 8]
        )
        model = made.loaded(save_nested(base, tmp_path)).eval()
        assert len([site for site in moetrace.discover(model) if site.taken]) == 2
        with moetrace.attach(model, layers=model.sites, alerts=None) as tracer:
            model.infer_forward(made.tokens(3) % 64)
            assert (
                [stats.layer for stats in tracer.flush()] == model.sites == ["base.model.layers.0"]
            )
