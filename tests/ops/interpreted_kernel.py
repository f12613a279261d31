"""The fused kernel under Triton's interpreter, which runs it on the CPU.

The interpreter is chosen when Triton is imported, so `test_triton_kernel.py` runs this file in a
process of its own with TRITON_INTERPRET=1; by itself pytest does not collect it.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.layout import SCORINGS, AccumulatorLayout
from moetrace.ops import Bin, TracerState, count, fused, register
from moetrace.ops.reference import routing_delta
from moetrace.ops.triton_kernel import Launch, add_routing
from moetrace.routing import Routing
from tests.ops.forwards import assert_equal, forwards

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy says NaN aloud

SOFTMAX, SIGMOID = SCORINGS.index("softmax"), SCORINGS.index("sigmoid")


def kernel(routing, mask_T, num_experts, scoring, *, launch=None):
    """What the kernel adds to a row of zeros."""
    row = torch.zeros(AccumulatorLayout(num_experts).width, dtype=torch.int64)
    add_routing(row, routing, mask_T, num_experts, scoring, launch=launch or Launch())
    return row


def composition(routing, mask_T, num_experts, scoring):
    """What the composition says of the same numbers, lying one after the other."""
    whole = Routing(*(None if part is None else part.contiguous() for part in routing))
    return routing_delta(whole, mask_T, num_experts, scoring)


class TestEqualsTheComposition:
    @given(forwards(), st.sampled_from([SOFTMAX, SIGMOID]))
    @settings(max_examples=50, deadline=None)
    def test_on_any_forward(self, forward, scoring):
        """Counts are exact and sums of reals agree to 2e-5, on any shape, dtype and bad value."""
        routing, mask, E = forward
        truth = composition(routing, mask, E, scoring)
        assert_equal(kernel(routing, mask, E, scoring), truth, E, programs=70)

    @pytest.mark.parametrize("num_experts", [8, 60, 64, 128, 160, 256, 384, 512, 1024])
    @pytest.mark.parametrize("scoring", [SOFTMAX, SIGMOID])
    def test_when_programs_take_several_tiles(self, num_experts, scoring):
        """Fewer programs than tiles count every token once: each takes a tile, then the next."""
        torch.manual_seed(num_experts)
        T = 3 * Launch().tile(num_experts)[0] * 2 + 1
        logits = torch.randn(T, num_experts) * 3
        routing = Routing(logits.topk(4).indices, logits, torch.rand(T, 4))
        mask = torch.rand(T) > 0.2
        launch = Launch(programs=3)
        ours = kernel(routing, mask, num_experts, scoring, launch=launch)
        assert_equal(ours, composition(routing, mask, num_experts, scoring), num_experts, 3)

    def test_with_leading_dimensions(self):
        """Batch and length in front are flattened."""
        logits = torch.randn(2, 3, 8)
        routing = Routing(logits.topk(2).indices, logits, torch.rand(2, 3, 2))
        truth = composition(routing, None, 8, SOFTMAX)
        assert_equal(kernel(routing, None, 8, SOFTMAX), truth, 8)


class TestWorkedNumbers:
    def test_two_uniform_tokens(self):
        """Two uniform tokens over four experts have 2 ln 4 nats and half of each expert."""
        routing = Routing(torch.tensor([[0], [3]]), torch.zeros(2, 4), torch.ones(2, 1))
        row, layout = kernel(routing, None, 4, SOFTMAX), AccumulatorLayout(4)
        assert row[:5].tolist() == [1, 0, 0, 1, 0]
        assert row[layout.prob_sum : layout.gate_weight_sum].tolist() == [1 << 29] * 4
        entropy = int(row[layout.scalar("entropy_sum")]) / (1 << 26)
        assert entropy == pytest.approx(2 * math.log(4), rel=1e-6)

    def test_hostile_ids(self):
        """Ids that name no expert go to the overflow bin, and to no expert."""
        ids = torch.tensor([[-1], [4], [1 << 33], [2]])
        row = kernel(Routing(ids, torch.zeros(4, 4), torch.ones(4, 1)), None, 4, SOFTMAX)
        layout = AccumulatorLayout(4)
        assert row[:5].tolist() == [0, 0, 1, 0, 3]
        gates = row[layout.gate_weight_sum : layout.scalars].tolist()
        assert gates == [0, 0, 1 << 30, 0]

    def test_a_logit_beyond_the_limit(self):
        """A log-sum-exp of 5000 is added as 1024, and its square as 1024 squared."""
        logits = torch.tensor([[5000.0, 0.0]])
        row = kernel(Routing(torch.tensor([[0]]), logits), None, 2, SOFTMAX)
        layout = AccumulatorLayout(2)
        assert int(row[layout.scalar("lse_sum")]) == 1024 << 20
        assert int(row[layout.scalar("lse_sq_sum")]) == 1024 * 1024 << 16

    def test_an_empty_forward(self):
        """A forward without tokens is one call, and nothing else."""
        routing = Routing(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 8))
        row = kernel(routing, None, 8, SOFTMAX)
        assert (int(row.sum()), int(row[AccumulatorLayout(8).scalar("calls")])) == (1, 1)

    def test_padding_only(self):
        """A forward of nothing but padding is one call and its masked tokens."""
        logits = torch.full((3, 8), math.nan)
        routing = Routing(torch.full((3, 2), 99), logits, torch.full((3, 2), math.nan))
        row = kernel(routing, torch.zeros(3, dtype=torch.bool), 8, SOFTMAX)
        assert int(row[AccumulatorLayout(8).scalar("masked")]) == 3
        assert int(row.sum()) == 4


class TestAddition:
    ROUTING = Routing(torch.tensor([[0, 5], [5, 7]]), torch.randn(2, 8), torch.rand(2, 2))

    def test_two_calls_add_up(self):
        """A second forward adds to the first, to the last bit."""
        once = kernel(self.ROUTING, None, 8, SOFTMAX)
        row = once.clone()
        add_routing(row, self.ROUTING, None, 8, SOFTMAX)
        assert torch.equal(row, once * 2)

    def test_the_same_bits_twice(self):
        """The same forward adds the same bits each time."""
        first = kernel(self.ROUTING, None, 8, SIGMOID)
        assert torch.equal(first, kernel(self.ROUTING, None, 8, SIGMOID))

    def test_writes_to_its_row_only(self):
        """The other rows of the accumulator and the inputs stay as they were."""
        accumulator = torch.zeros(len(Bin), AccumulatorLayout(8).width, dtype=torch.int64)
        before = [part.clone() for part in self.ROUTING[:3]]
        add_routing(accumulator[1], self.ROUTING, None, 8, SOFTMAX)
        assert [int(row.sum() != 0) for row in accumulator] == [0, 1, 0, 0]
        assert all(torch.equal(a, b) for a, b in zip(before, self.ROUTING[:3], strict=True))

    @pytest.mark.parametrize("part", ["logits", "weights", "mask"])
    def test_parts_of_different_length(self, part):
        """Parts that disagree about the tokens are refused before anything reads past an end."""
        lengths = dict.fromkeys(("logits", "weights", "mask"), 2) | {part: 1}
        routing = Routing(
            torch.zeros(2, 1, dtype=torch.int64),
            torch.zeros(lengths["logits"], 4),
            torch.zeros(lengths["weights"], 1),
        )
        mask = torch.ones(lengths["mask"], dtype=torch.bool)
        with pytest.raises(ValueError, match=f"found 1 tokens in the {part} and 2 in the ids"):
            kernel(routing, mask, 4, SOFTMAX)


class TestThroughTheOperator:
    def test_counts_by_the_kernel(self, monkeypatch):
        """Where the device has the kernel, the operator uses it and not the composition."""
        monkeypatch.setattr(fused, "_DEVICES", {"cpu"})
        state = TracerState()
        register(state)
        accumulator = torch.zeros(len(Bin), AccumulatorLayout(8).width, dtype=torch.int64)
        ids, logits = torch.tensor([[0, 5], [5, 7]]), torch.randn(2, 8)
        monkeypatch.setattr("moetrace.ops.library.routing_delta", None)
        monkeypatch.setattr("moetrace.ops.library.add_on_host", lambda *_: None)
        count(accumulator, logits, ids, None, None, None, True, True, SOFTMAX, state.handle)
        assert (accumulator[Bin.FIRST, :8].tolist(), state.errors) == ([1, 0, 0, 0, 0, 2, 0, 1], {})
