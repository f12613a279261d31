import torch
from torch import nn

from moetrace.ops import TracerState
from moetrace.probes import MaskProbe, takes_a_mask


class Model(nn.Module):
    """Names the argument as transformers models do."""

    def forward(self, input_ids=None, attention_mask=None):
        """Nothing that matters here."""
        return input_ids


def seen(state):
    """The mask that the hooks would see, as a list."""
    return None if state.mask_T is None else state.mask_T.tolist()


def probe():
    """A mask probe on a model, and the state that it writes to."""
    state = TracerState()
    return MaskProbe(Model(), state), state


IDS = torch.ones(2, 3, dtype=torch.long)
MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])
FLAT = [False, True, True, True, True, True]


class TestMaskProbe:
    def test_by_name(self):
        """The mask is flattened to one flag per token."""
        hook, state = probe()
        hook(Model(), (), {"input_ids": IDS, "attention_mask": MASK})
        assert seen(state) == FLAT

    def test_by_position(self):
        """A mask that is given by position is found through the signature."""
        hook, state = probe()
        hook(Model(), (IDS, MASK), {})
        assert seen(state) == FLAT

    def test_last_columns_in_generation(self):
        """With a cache the mask covers the past too; the input is its last columns."""
        hook, state = probe()
        hook(Model(), (), {"input_ids": IDS[:, :1], "attention_mask": MASK})
        assert seen(state) == [True, True]

    def test_an_inner_mask_of_another_shape_leaves_the_outer_one(self):
        """Below the model a layer's four-dimensional mask does not undo what the model's said."""
        state = TracerState()
        MaskProbe(Model(), state)(Model(), (IDS, MASK), {})
        MaskProbe(Model(), state, inner=True)(Model(), (IDS, torch.ones(2, 1, 3, 3)), {})
        assert seen(state) == FLAT
        MaskProbe(Model(), state, inner=True)(Model(), (IDS, None), {})
        assert seen(state) is None

    def test_other_shapes_say_nothing(self):
        """A four-dimensional or missing mask of the model itself clears what was there."""
        hook, state = probe()
        for mask in (torch.ones(2, 1, 3, 3), None, {"full_attention": MASK}):
            hook(Model(), (), {"input_ids": IDS, "attention_mask": MASK})
            hook(Model(), (), {"input_ids": IDS, "attention_mask": mask})
            assert seen(state) is None

    def test_keeps_its_address(self):
        """A mask of the same size goes into the same memory."""
        hook, state = probe()
        hook(Model(), (IDS, MASK), {})
        address = state.mask_T.data_ptr()
        hook(Model(), (IDS, 1 - MASK), {})
        assert state.mask_T.data_ptr() == address
        assert seen(state) == [not real for real in FLAT]

    def test_returns_none(self):
        """A pre-hook that returns something would replace the model's arguments."""
        hook, _ = probe()
        assert hook(Model(), (IDS, MASK), {}) is None

    def test_a_decoder_has_a_mask_of_its_own(self):
        """Below a decoder its own mask holds, and without one all of its tokens are real."""

        class Decoder(nn.Module):
            def forward(self, decoder_input_ids=None, decoder_attention_mask=None):
                return decoder_input_ids

        state = TracerState()
        decoder = MaskProbe(Decoder(), state, inner=True)
        MaskProbe(Model(), state)(Model(), (IDS, MASK), {})
        decoder(Decoder(), (), {"decoder_input_ids": IDS, "decoder_attention_mask": 1 - MASK})
        assert seen(state) == [not real for real in FLAT]
        decoder(Decoder(), (), {"decoder_input_ids": IDS})
        assert seen(state) is None


class TestTakesAMask:
    def test_by_signature(self):
        """Only a forward that names the argument takes a mask."""
        assert takes_a_mask(Model())
        assert not takes_a_mask(nn.Linear(2, 2))
