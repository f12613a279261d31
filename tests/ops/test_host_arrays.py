import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moetrace.layout import SCORINGS, AccumulatorLayout
from moetrace.ops import host_arrays
from moetrace.ops.host_arrays import array_delta
from moetrace.ops.reference import log_scores, routing_delta
from moetrace.routing import Routing
from tests.ops.forwards import (
    IDS,
    LOGITS,
    ROUTING,
    WEIGHTS,
    Subclass,
    assert_equal,
    forwards,
    made,
)

SOFTMAX = SCORINGS.index("softmax")
ENTROPY_ERROR = 4e-6
"""Nats per token: a float32 logarithm of at most 16, and a sum of as much beside it."""


def host(routing, mask_T, num_experts, scoring=SOFTMAX):
    """The sums as a tensor; fails where the form leaves the forward to the composition."""
    delta = array_delta(routing, mask_T, num_experts, scoring)
    assert delta is not None
    return torch.from_numpy(delta)


def spread(routing, scoring):
    """How far the scores of a token lie apart at most."""
    scores_TE = log_scores(routing.logits_TE.float(), SCORINGS[scoring])
    return float((scores_TE.amax(1) - scores_TE.amin(1)).max())


class TestEqualsTheComposition:
    @given(forwards(hostile=False), st.sampled_from(range(2)))
    @settings(max_examples=100, deadline=None)
    def test_on_an_ordinary_forward(self, forward, scoring):
        """Counts are exact and sums of reals agree to 2e-5, on any shape, dtype and stride."""
        routing, mask, E = forward
        assume(routing.topk_expert_ids_TK.numel())
        assume(spread(routing, scoring) < 60)
        truth = routing_delta(routing, mask, E, scoring)
        assert_equal(host(routing, mask, E, scoring), truth, E, entropy_error=ENTROPY_ERROR)

    @given(forwards(), st.sampled_from(range(len(SCORINGS))))
    @settings(max_examples=100, deadline=None)
    def test_on_any_forward_that_it_takes(self, forward, scoring):
        """Among forwards with bad values it takes none that it would count differently."""
        routing, mask, E = forward
        ours = array_delta(routing, mask, E, scoring)
        if ours is not None:
            truth = routing_delta(routing, mask, E, scoring)
            assert_equal(torch.from_numpy(ours), truth, E, entropy_error=ENTROPY_ERROR)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize(
        ("T", "E", "K"), [(3000, 64, 8), (5000, 3, 1), (200, 1024, 8), (9, 8192, 8)]
    )
    @pytest.mark.parametrize("scoring", range(3))
    def test_in_several_passes(self, T, E, K, masked, scoring):
        """Tokens that do not fit one pass are added pass by pass, the last one shorter."""
        routing = made(T, E, K)
        mask = torch.arange(T) % 3 > 0 if masked else None
        truth = routing_delta(routing, mask, E, scoring)
        assert_equal(host(routing, mask, E, scoring), truth, E, T, ENTROPY_ERROR)

    @pytest.mark.parametrize("offset", [-900.0, -40.0, -15.0, 15.0, 40.0, 900.0])
    def test_scores_far_from_zero(self, offset):
        """Wherever the scores lie, what depends on their differences is the same."""
        routing = made(300, 64, 8)
        far = routing._replace(logits_TE=routing.logits_TE + offset)
        truth = routing_delta(far, None, 64, SOFTMAX)
        assert_equal(host(far, None, 64), truth, 64, entropy_error=ENTROPY_ERROR)

    @pytest.mark.parametrize(("scale", "offset"), [(0.1, 12.0), (1.0, -12.0), (5.0, 0.0)])
    def test_the_entropy_of_a_token(self, scale, offset):
        """It is exact to 4e-6 nats against float64, also close to zero, and never below zero."""
        generator = torch.Generator().manual_seed(0)
        layout = AccumulatorLayout(64)
        for _ in range(100):
            logits = torch.randn(1, 64, generator=generator) * scale + offset
            row = host(Routing(torch.tensor([[0]]), logits), None, 64)
            probs = logits.double().softmax(1)
            truth = float(-(probs * probs.log()).sum())
            entropy = int(row[layout.scalar("entropy_sum")]) / (1 << 26)
            assert entropy == pytest.approx(truth, abs=ENTROPY_ERROR)
            assert entropy >= 0

    def test_without_the_row_product_of_numpy_2(self, monkeypatch):
        """With numpy 1 the rows are multiplied by einsum, to the same sums."""
        routing = made(300, 64, 8)
        monkeypatch.setattr(host_arrays, "_row_dots", host_arrays._einsum_row_dots)
        truth = routing_delta(routing, None, 64, SOFTMAX)
        assert_equal(host(routing, None, 64), truth, 64, entropy_error=ENTROPY_ERROR)

    def test_gate_weights_of_either_sign(self):
        """Weights below 0 and at the limit are added as they are."""
        routing = Routing(IDS[:2], LOGITS[:2], torch.tensor([[-1024.0, 1024.0], [-0.5, 0.25]]))
        layout = AccumulatorLayout(8)
        gates = host(routing, None, 8)[layout.gate_weight_sum : layout.scalars]
        assert (gates / (1 << 30)).tolist() == [-1024, 1023.5, 0.25, 0, 0, 0, 0, 0]


class TestWorkedNumbers:
    def test_two_uniform_tokens(self):
        """Two uniform tokens over four experts have 2 ln 4 nats and half of each expert."""
        routing = Routing(torch.tensor([[0], [3]]), torch.zeros(2, 4), torch.ones(2, 1))
        row, layout = host(routing, None, 4), AccumulatorLayout(4)
        assert row[:5].tolist() == [1, 0, 0, 1, 0]
        assert row[layout.prob_sum : layout.gate_weight_sum].tolist() == [1 << 29] * 4
        entropy = int(row[layout.scalar("entropy_sum")]) / (1 << 26)
        assert entropy == pytest.approx(2 * math.log(4), rel=1e-7)

    def test_padding(self):
        """A padded token adds one to the masked ones, and nothing else."""
        mask = torch.tensor([True, False, False, False, False, False])
        padded = host(ROUTING, mask, 8)
        alone = host(Routing(IDS[:1], LOGITS[:1], WEIGHTS[:1]), None, 8)
        alone[AccumulatorLayout(8).scalar("masked")] = 5
        assert torch.equal(padded, alone)

    def test_padding_only(self):
        """A forward of nothing but padding is one call and its masked tokens."""
        row, layout = host(ROUTING, torch.zeros(6, dtype=torch.bool), 8), AccumulatorLayout(8)
        assert (int(row[layout.scalar("masked")]), int(row[layout.scalar("calls")])) == (6, 1)
        assert int(row.sum()) == 7


class TestLeavesToTheComposition:
    @pytest.mark.parametrize(
        "routing",
        [
            Routing(IDS),
            Routing(None, LOGITS),
            Routing(None, LOGITS, None, LOGITS > 0),
            Routing(IDS, LOGITS, None, LOGITS > 0),
            Routing(IDS, LOGITS.int()),
            Routing(IDS.float(), LOGITS),
            Routing(IDS > 0, LOGITS),
            Routing(IDS, torch.zeros(6, 9)),
            Routing(IDS, torch.zeros(5, 8)),
            Routing(IDS, LOGITS, torch.ones(6, 1)),
            Routing(IDS, LOGITS, IDS),
            Routing(IDS, LOGITS.as_subclass(Subclass)),
            Routing(IDS.as_subclass(Subclass), LOGITS),
            Routing(IDS, LOGITS, WEIGHTS.clone().requires_grad_()),
            Routing(IDS, torch.view_as_complex(LOGITS.view(6, 4, 2)).conj().imag),
            Routing(IDS.to("meta"), LOGITS.to("meta")),
            Routing(IDS, LOGITS.to_sparse()),
            Routing(IDS[:0], LOGITS[:0]),
        ],
    )
    def test_what_it_cannot_read(self, routing):
        """Parts that are missing, no plain CPU numbers or of another shape are not touched."""
        assert array_delta(routing, None, 8, SOFTMAX) is None

    @pytest.mark.parametrize(
        "mask", [torch.ones(5, dtype=torch.bool), torch.ones(6), torch.ones(1, 6, dtype=torch.bool)]
    )
    def test_a_mask_that_does_not_fit(self, mask):
        """A mask of another shape or type is not guessed at."""
        assert array_delta(ROUTING, mask, 8, SOFTMAX) is None

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, 5000.0])
    def test_a_score_out_of_bounds(self, bad):
        """A token whose scores are not finite, or beyond a limit, shows in the sums."""
        logits = torch.zeros(600, 128)
        logits[555, 1] = bad  # in the second pass
        ids = torch.zeros(600, 1, dtype=torch.int64)
        assert array_delta(Routing(ids, logits), None, 128, SOFTMAX) is None

    @pytest.mark.parametrize("chosen", [0, 1])
    def test_a_choice_that_float32_cannot_hold(self, chosen):
        """A score 86 below the best has no probability in float32; the composition has its margin.

        Log probabilities stop at -200: a score 500 below the best has a margin of 200.
        """
        routing = Routing(torch.tensor([[chosen]]), torch.tensor([[0.0, -500.0]]))
        assert array_delta(routing, None, 2, SOFTMAX) is None
        row = routing_delta(routing, None, 2, SOFTMAX)
        margin = int(row[AccumulatorLayout(2).scalar("margin_sum")]) >> 20
        assert margin == (-200 if chosen else 200)

    @pytest.mark.parametrize("bad", [-1, 8, 1 << 33, -(1 << 62)])
    def test_an_id_that_names_no_expert(self, bad):
        """Such an id is found before anything is indexed or allocated by it."""
        ids = IDS.clone()
        ids[-1, -1] = bad
        assert array_delta(Routing(ids, LOGITS), None, 8, SOFTMAX) is None

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1025.0, -1025.0])
    def test_a_weight_out_of_bounds(self, bad):
        """A weight that the fixed point would clamp is left to the form that clamps."""
        weights = WEIGHTS.clone()
        weights[2, 0] = bad
        assert array_delta(Routing(IDS, LOGITS, weights), None, 8, SOFTMAX) is None

    def test_more_experts_than_a_row_product_takes(self):
        """Above 8,192 experts numpy would start threads of its own."""
        assert array_delta(Routing(IDS, torch.zeros(6, 8193)), None, 8193, SOFTMAX) is None


class TestLeavesTheProcessAsItIs:
    def test_says_nothing_of_bad_numbers(self):
        """NaN and infinity raise no warning of numpy's, even where warnings are errors."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for bad in (math.nan, math.inf, -math.inf):
                logits = LOGITS.clone()
                logits[0] = bad
                array_delta(Routing(IDS, logits), None, 8, SOFTMAX)
        assert np.geterr()["invalid"] == "warn"

    def test_inputs_and_random_state(self):
        """The model's tensors and the random state are the same before and after."""
        copies, state = [part.clone() for part in ROUTING[:3]], torch.get_rng_state()
        mask = torch.ones(6, dtype=torch.bool)
        host(ROUTING, mask, 8)
        assert all(torch.equal(*pair) for pair in zip(copies, ROUTING[:3], strict=True))
        assert mask.all()
        assert torch.equal(state, torch.get_rng_state())

    def test_autocast_does_not_reach_it(self):
        """Under bfloat16 autocast the sums are those of float32."""
        with torch.autocast("cpu", torch.bfloat16):
            inside = host(ROUTING, None, 8)
        assert torch.equal(inside, host(ROUTING, None, 8))

    def test_deterministic_mode(self):
        """No operation is used that deterministic mode refuses, and the sums are the same."""
        plain = host(ROUTING, None, 8)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.equal(host(ROUTING, None, 8), plain)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_a_default_device_and_dtype(self):
        """Where new tensors of the user's go does not concern it."""
        plain = host(ROUTING, None, 8)
        host_arrays._pads.free.clear()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                assert torch.equal(host(ROUTING, None, 8), plain)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_inference_mode_before_training(self):
        """Memory that a generation took first is written to by the training that follows."""
        host_arrays._pads.free.clear()
        with torch.inference_mode():
            first = host(Routing(IDS, LOGITS + 0), None, 8)
        assert torch.equal(first, host(ROUTING._replace(topk_weights_TK=None), None, 8))

    def test_keeps_memory_of_few_sizes(self):
        """However many lengths a run has, the pads of eight are kept."""
        for T in range(1, 40):
            host(made(T, 8, 2), None, 8)
        assert len(host_arrays._pads.free) == 8
