import io

import pytest
import torch
import transformers
from layerwise.causal_lm import LayerwiseQuantizeForCausalLM, checked_precisions
from layerwise.errors import RecipeError
from layerwise.nested_model import nest_model, save_nested
from layerwise.precision_layer import PrecisionLayer
from layerwise.tiny_model import tiny_llama

from tests.recipes.precision_router import made

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


class TestForwards:
    def test_sure_routers_make_all_three_the_same(self, model_folder):
        """S4-09: with a one-hot router mixture, arg-max and fixed bits agree to the last bit."""
        model, ids = made.chooses(made.loaded(model_folder), 3, 6).eval(), made.tokens()
        mixed = model.train_forward(ids, torch.ones_like(ids))
        chosen = model.infer_forward(ids, torch.ones_like(ids))
        fixed = model.fixed_forward(ids, torch.ones_like(ids), bits=[3, 6])
        assert mixed.logits.equal(fixed.logits)
        assert chosen.logits.equal(fixed.logits)
        assert mixed.bits_BL.tolist() == chosen.bits_BL.tolist() == [[3, 6]] * 3

    def test_precisions_give_different_logits(self, model_folder):
        """S4-09: fewer bits are another model, so that the test above can fail."""
        model, ids = made.loaded(model_folder), made.tokens()
        low, high = model.fixed_forward(ids, bits=3), model.fixed_forward(ids, bits=8)
        assert not torch.allclose(low.logits, high.logits, atol=1e-3)

    def test_eight_bits_are_nearly_the_model(self, model_folder):
        """S4-09: rotary, masks and final norm are those of transformers: 8 bits are its logits."""
        torch.manual_seed(0)
        whole, ids = tiny_llama(width=16, layers=2, length=64), made.tokens()
        with torch.no_grad():
            logits = whole(input_ids=ids).logits
        near = made.loaded(model_folder).fixed_forward(ids, bits=8).logits
        assert (near - logits).norm() < 0.02 * logits.norm()

    def test_a_mixture_is_the_weighted_sum_of_layer_outputs(self, model_folder):
        """S4-09: in the last layer, outputs are mixed with the probabilities; bits are expected."""
        model, ids = made.chooses(made.loaded(model_folder), 8, 8).eval(), made.tokens(1)
        with torch.no_grad():
            model.layers[1].router.bias.copy_(torch.tensor([0.5, 0.0, 0, 0, 0, 0.5]).log())
        got = {}
        for bits in (3, 8):
            hook = model.layers[1].register_forward_hook(
                lambda module, args, output, bits=bits: got.update({bits: output})
            )
            model.fixed_forward(ids, bits=[8, bits])
            hook.remove()
        hook = model.layers[1].register_forward_hook(lambda m, a, output: got.update(mixed=output))
        output = model.train_forward(ids)
        hook.remove()
        torch.testing.assert_close(got["mixed"], 0.5 * got[3] + 0.5 * got[8])
        assert output.bits_BL.tolist() == [[8.0, 5.5]]

    def test_two_neighbours_surround_the_expected_bits(self, model_folder, monkeypatch):
        """S4-09: with neighbours=2 undecided routers of 3 to 8 run 5 and 6 bits, half and half."""
        model, ids, ran = made.loaded(model_folder), made.tokens(1), set()
        for layer in model.layers:
            layer.router.bias.data.zero_()
        run = PrecisionLayer._run
        monkeypatch.setattr(
            PrecisionLayer,
            "_run",
            lambda self, bits, *rest: ran.add(bits) or run(self, bits, *rest),
        )
        output = model.train_forward(ids, neighbours=2)
        assert ran == {5, 6}
        torch.testing.assert_close(output.bits_BL, torch.full((1, 2), 5.5))

    def test_straight_through_runs_the_choice_with_the_gradient_of_the_mixture(self, model_folder):
        """S4-09: its logits are those of infer_forward, and its routers get a gradient."""
        model, ids = made.opinionated(made.loaded(model_folder)).eval(), made.tokens()
        hard = model.infer_forward(ids)
        through = model.train_forward(ids, mode="straight_through")
        torch.testing.assert_close(through.logits, hard.logits, atol=1e-4, rtol=1e-4)
        through.avg_precision.backward()
        assert model.layers[0].router.bias.grad.abs().sum() > 0

    def test_batch_mates_do_not_matter(self, model_folder):
        """S4-09: each sequence runs in its own precision, in a batch as alone, padded or not."""
        model, ids = made.opinionated(made.loaded(model_folder)).eval(), made.tokens(6, 16)
        mask = torch.ones_like(ids)
        mask[0, 10:] = 0
        together = model.infer_forward(ids, mask)
        assert together.bits_BL.unique(dim=0).shape[0] > 1
        for row in range(6):
            length = 10 if row == 0 else 16
            alone = model.infer_forward(ids[row : row + 1, :length])
            assert alone.bits_BL[0].equal(together.bits_BL[row])
            torch.testing.assert_close(alone.logits[0], together.logits[row, :length])

    def test_the_highest_of_a_batch_is_an_option(self, model_folder):
        """S4-09: batch_policy="max" runs every sequence in the highest precision of the batch."""
        model, ids = made.opinionated(made.loaded(model_folder)).eval(), made.tokens(6)
        each = model.infer_forward(ids)
        most = model.infer_forward(ids, batch_policy="max")
        assert most.bits_BL[:, 0].tolist() == [each.bits_BL[:, 0].max().item()] * 6

    def test_recomputed_layers_have_the_same_gradients(self, model_folder):
        """S4-27: less memory changes nothing: a recomputation runs in the bits of its forward."""
        gradients = []
        for recompute in (False, True):
            model, ids = made.opinionated(made.loaded(model_folder)).eval(), made.tokens()
            model.recompute_layers(recompute)
            model.train_forward(ids).logits.square().mean().backward()
            gradients.append([weight.grad for weight in model.router_parameters()])
        for kept, again in zip(*gradients, strict=True):
            torch.testing.assert_close(kept, again)

    def test_a_plain_call_is_refused(self, model_folder):
        """S4-09: which forward is meant has to be said."""
        model = made.loaded(model_folder)
        with pytest.raises(
            RuntimeError, match="call train_forward, infer_forward or fixed_forward"
        ):
            model(made.tokens())
        with pytest.raises(
            RuntimeError, match="call train_forward, infer_forward or fixed_forward"
        ):
            model.base(made.tokens())


class TestArchitectures:
    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("Qwen3", {"head_dim": 8}),
            ("Gemma3Text", {"head_dim": 8, "sliding_window": 4}),
            ("GPTNeoX", {}),
            ("Bloom", {"n_head": 4, "n_layer": 2}),
            ("Mixtral", {"num_local_experts": 4}),
        ],
    )
    def test_a_padded_batch_is_as_its_sequences_alone(self, name, changes, tmp_path):
        """S4-09: rotary, sliding windows, alibi, experts: 8 bits are the model, rows apart."""
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**SHAPE, **changes)
        whole = transformers.AutoModelForCausalLM.from_config(config).eval()
        ids = made.tokens(3, 16) % 64
        mask = torch.ones_like(ids)
        mask[0, 12:] = 0
        with torch.no_grad():
            logits = whole(input_ids=ids, attention_mask=mask, use_cache=False).logits[1:]
        save_nested(nest_model(whole, group=16, precisions=[3, 8]), tmp_path)
        model = made.opinionated(made.loaded(tmp_path)).eval()
        near = model.fixed_forward(ids, mask, bits=8).logits[1:]
        assert (near - logits).norm() < 0.02 * logits.norm()
        together = model.infer_forward(ids, mask)
        alone = model.infer_forward(ids[:1, :12])
        torch.testing.assert_close(alone.logits[0], together.logits[0, :12], atol=1e-4, rtol=1e-4)
        assert len(model.sites) == 2


class TestFreezing:
    def test_only_routers_are_trained(self, model_folder):
        """S4-08: a step changes routers, and not a byte of anything else."""
        model, ids = made.loaded(model_folder).train(), made.tokens()
        before = {name: value.clone() for name, value in model.base.named_buffers()}
        before |= {name: value.clone() for name, value in model.base.named_parameters()}
        optimizer = torch.optim.AdamW(model.router_parameters(), lr=1e-2)
        output = model.train_forward(ids)
        (output.logits.square().mean() + output.avg_precision).backward()
        optimizer.step()
        after = dict(model.base.named_buffers()) | dict(model.base.named_parameters())
        changed = {name for name, value in after.items() if not value.equal(before[name])}
        assert changed
        assert all(".router." in name for name in changed)
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert all(".router." in name for name in trained)

    def test_the_number_of_trainable_parameters_is_that_of_the_routers(self, model_folder):
        """S4-16: 2 routers of 16 -> 128 -> 128 -> 6: 2 * (32 + 2176 + 16512 + 774) weights."""
        model = made.loaded(model_folder)
        assert sum(weight.numel() for weight in model.router_parameters()) == 38988
        trained = [weight.numel() for weight in model.parameters() if weight.requires_grad]
        assert sum(trained) == 38988

    def test_train_mode_is_for_routers_alone(self, model_folder):
        """S4-22: the frozen model stays in eval mode, without dropout."""
        model = made.loaded(model_folder).train()
        assert all(layer.router.body.training and layer.training for layer in model.layers)
        assert not any(part.training for layer in model.layers for part in layer.layer.modules())
        assert not model.base.training


class TestFromQuantized:
    def test_it_loads_what_was_saved(self, model_folder):
        """S4-11: the documented call, and the same logits from both loads."""
        torch.manual_seed(0)
        first, second = (
            LayerwiseQuantizeForCausalLM.from_quantized(
                quant_model_path=str(model_folder), trust_remote_code=True
            )
            for _ in range(2)
        )
        ids = made.tokens()
        assert first.precisions == (3, 4, 5, 6, 7, 8)
        assert str(first.pool) == "prefix:64"
        one, other = first.fixed_forward(ids, bits=5), second.fixed_forward(ids, bits=5)
        assert one.logits.equal(other.logits)

    def test_it_is_the_model_that_was_nested(self, model_folder):
        """S4-11: every stored byte comes back."""
        torch.manual_seed(0)
        base = nest_model(tiny_llama(width=16, layers=2, length=64), group=16, precisions=[3, 8])
        back = made.loaded(model_folder).base
        stored = base.state_dict()
        read = {name.replace("layer.", ""): value for name, value in back.state_dict().items()}
        assert all(read[name].equal(value) for name, value in stored.items())

    def test_a_tied_head_is_written_once(self, tmp_path):
        """S4-11: tied embeddings are tied again after loading."""
        from layerwise.nested_model import load_nested
        from safetensors import safe_open

        model = tiny_llama(width=16, layers=1)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        save_nested(nest_model(model, group=16, precisions=[3, 8]), tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert len({"lm_head.weight", "model.embed_tokens.weight"} & set(file.keys())) == 1
        base, _ = load_nested(tmp_path)
        assert base.lm_head.weight is base.model.embed_tokens.weight

    def test_some_precisions_may_be_chosen(self, model_folder):
        """S4-11: precisions= takes some of those that there are."""
        assert made.loaded(model_folder, precisions=[8, 4]).precisions == (4, 8)

    def test_a_precision_that_is_not_there_is_refused(self):
        """S4-17: the message says which there are and which option to change."""
        with pytest.raises(RecipeError, match=r"--precisions 2 9; this model supports \[3, 4\]"):
            checked_precisions([2, 9], [3, 4])

    def test_a_model_without_linear_layers_is_refused(self):
        """S4-17: GPT-2 is made of another kind of layer, and is not stored half."""
        shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 16}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
        with pytest.raises(RecipeError, match="no linear layer in the layers of GPT2LMHeadModel"):
            nest_model(model, precisions=[3, 8])

    def test_no_model_is_said_plainly(self, tmp_path):
        """S4-17: a folder that is none, and one that is not quantised, say what to run."""
        with pytest.raises(RecipeError, match=r"no quantized model in .*nowhere; MODEL_PATH is"):
            made.loaded(tmp_path / "nowhere")
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(RecipeError, match=r"not a quantized one; run: quantize\.py"):
            made.loaded(tmp_path)

    def test_a_file_that_is_cut_off_is_said_plainly(self, model_folder, tmp_path):
        """S4-17: half a weight file names the file and the program to run."""
        (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
        whole = (model_folder / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(whole[:1000])
        with pytest.raises(RecipeError, match=r"no readable .*model.safetensors"):
            made.loaded(tmp_path)


class TestStateDict:
    def test_it_holds_the_routers_alone(self, model_folder):
        """S4-27: a checkpoint grows with the routers and not with the model."""
        state = made.loaded(model_folder).state_dict()
        assert all(".router." in name for name in state)
        numbers = sum(value.numel() for value in state.values() if hasattr(value, "numel"))
        assert numbers == 38988

    def test_it_loads_as_documented(self, model_folder):
        """S4-13: torch.load as it is, load_state_dict, eval, infer_forward."""
        trained = made.opinionated(made.loaded(model_folder, pool="mean")).eval()
        file = io.BytesIO()
        torch.save({"model_state_dict": trained.state_dict()}, file)
        file.seek(0)
        model = made.loaded(model_folder, pool="prefix:4")
        checkpoint = torch.load(file)
        model.load_state_dict(checkpoint["model_state_dict"])
        model.eval()
        ids = made.tokens()
        output = model.infer_forward(ids, torch.ones_like(ids))
        assert output.logits.equal(trained.infer_forward(ids).logits)
        assert str(model.pool) == "mean"  # it goes with the weights

    def test_routers_of_another_model_are_refused(self, model_folder):
        """S4-17: other precisions and other layers are named."""
        model = made.loaded(model_folder)
        with pytest.raises(RecipeError, match=r"a router for precisions \[3, 4\]"):
            model.load_state_dict(made.loaded(model_folder, precisions=[3, 4]).state_dict())
        state = model.state_dict()
        state.popitem()
        with pytest.raises(RecipeError, match="routers of another model: 1 entries are missing"):
            model.load_state_dict(state)
