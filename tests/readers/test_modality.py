"""Ernie-4.5-VL: two mixtures of experts in one block, one for text and one for images."""

import logging

import pytest
import torch

import moetrace
from moetrace.readers.modality import kind_of
from tests.coverage.architectures import tiny_model

TEXT = [f"layers.{index}.mlp.text_moe" for index in (1, 2)]
VISION = [f"layers.{index}.mlp.vision_moe" for index in (1, 2)]
KINDS = torch.zeros(2, 12, dtype=torch.int32)
KINDS[:, 4:9] = 1
MASK = torch.ones(2, 12, dtype=torch.long)
MASK[0, :5] = 0


@pytest.fixture(scope="module")
def model():
    """Three tiny layers of which two are mixtures."""
    name = "transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe"
    module = pytest.importorskip(name)
    return tiny_model(module.Ernie4_5_VLMoeTextModel)


def step(model, tracer, kinds):
    """One step of 24 tokens, of which 5 are padding; the tokens of each site by name."""
    ids = torch.randint(2, 60, (2, 12))
    given = {} if kinds is None else {"moe_mm_token_type_ids": kinds}
    tracer.on_step_begin()
    model(input_ids=ids, attention_mask=MASK, use_cache=False, **given)
    tracer.on_step_end()
    snapshot = tracer.flush()
    return {stats.layer: (stats.tokens, stats.masked) for stats in snapshot}


class TestTwoModalities:
    def test_each_has_its_own_padding(self, model):
        """Ten tokens are of images, of which one is padding; the other four padded are of text."""
        with moetrace.attach(model.train(), every=1) as tracer:
            assert [site.name for site in tracer.sites] == sorted(TEXT + VISION)
            counted = step(model, tracer, KINDS)
        assert {counted[name] for name in TEXT} == {(10, 4)}
        assert {counted[name] for name in VISION} == {(9, 1)}

    @pytest.mark.parametrize("kinds", [None, torch.zeros_like(KINDS)])
    def test_text_alone(self, model, kinds, caplog):
        """Without images all tokens go to the text's experts, and the others' silence is right."""
        with caplog.at_level(logging.WARNING), moetrace.attach(model.train(), every=1) as tracer:
            counted = step(model, tracer, kinds)
        assert {counted[name] for name in TEXT} == {(19, 5)}
        assert {counted[name] for name in VISION} == {(0, 0)}
        assert caplog.text == ""

    def test_a_mask_of_the_users(self, model):
        """A mask that the user gives is sorted by kind as the model's own is."""
        given = 1 - KINDS
        with moetrace.attach(model.train(), every=1) as tracer, tracer.tokens(mask=given):
            counted = step(model, tracer, KINDS)
        assert {counted[name] for name in TEXT} == {(14, 0)}
        assert {counted[name] for name in VISION} == {(0, 10)}

    def test_kinds_that_change_between_steps(self, model):
        """What an earlier forward was told does not outlive it."""
        with moetrace.attach(model.train(), every=1) as tracer:
            step(model, tracer, KINDS)
            assert {step(model, tracer, None)[name] for name in TEXT} == {(19, 5)}


class TestKindOf:
    def test_text_comes_first(self, model):
        """The first of the alike blocks is for text, the second for images."""
        kinds = [kind_of(model, f"{name}.gate") for name in (*TEXT, *VISION)]
        assert kinds == [0, 0, 1, 1]

    def test_no_kind(self, model):
        """What stands alone in its block gets all tokens."""
        assert kind_of(model, "layers.0.mlp.gate_proj") is None
