"""Routers with a capacity limit: dispatch tensors, routes, and the choice before the limit."""

import pytest
import torch
from torch import nn

import moetrace
from moetrace.readers.capacity import (
    before_limit,
    choices_by_name,
    is_limited,
    limit_of,
    read_routes,
    read_slots,
)
from tests.tiny import StackedExperts

HIDDEN = torch.ones(3, 4)
COMBINE = torch.zeros(3, 2, 2)
COMBINE[0, 1, 0], COMBINE[1, 0, 1], COMBINE[2, 1, 1] = 0.75, 0.5, 0.25
DISPATCH = COMBINE.bool()
MAP = [[0.0, 0.75], [0.5, 0.0], [0.0, 0.25]]


class TestSlots:
    @pytest.mark.parametrize(
        "output",
        [
            (torch.tensor(0.1), COMBINE, DISPATCH),
            (DISPATCH.float(), COMBINE, torch.tensor(0.1)),
            [DISPATCH, COMBINE],
        ],
    )
    def test_weights_are_those_of_combine(self, output):
        """The float one is combine, and of two the last; a token's slots of an expert add up."""
        routing = read_slots(output, (HIDDEN,), 2)
        assert routing.routing_map_TE.tolist() == MAP
        assert routing.topk_expert_ids_TK is None

    def test_batches(self):
        """Tokens may stand in rows and columns."""
        slots = COMBINE.reshape(1, 3, 2, 2)
        routing = read_slots((slots.bool().float(), slots), (HIDDEN[None],), 2)
        assert routing.routing_map_TE.tolist() == [MAP]

    @pytest.mark.parametrize(
        "output",
        [
            (COMBINE,),
            (DISPATCH, DISPATCH),
            (COMBINE, DISPATCH[:2]),
            (COMBINE, DISPATCH[..., :1]),
            (COMBINE[0], DISPATCH[0]),
            (None, COMBINE),
            (torch.rand(3, 2), torch.rand(3, 2)),
        ],
    )
    def test_leaves_what_is_something_else(self, output):
        """One tensor, flags alone, or shapes that differ are no slots."""
        assert read_slots(output, (HIDDEN,), 2) is None

    def test_a_map_of_as_many_rows_as_experts_is_no_slots(self):
        """Megatron's map ``(S, B, E)`` with B = E is told apart by what went in."""
        output = (torch.rand(5, 2, 2), torch.ones(5, 2, 2, dtype=torch.bool))
        assert read_slots(output, (torch.ones(5, 2, 4),), 2) is None

    @pytest.mark.parametrize("arguments", [(), (None,), (torch.ones(4),)])
    def test_without_hidden_states(self, arguments):
        """A call that shows no tokens is left alone."""
        assert read_slots((COMBINE, DISPATCH), arguments, 2) is None


IDS = torch.tensor([[0, 2, -1], [1, -1, -1]], dtype=torch.int32)
SLOTS = torch.tensor([[0, 0, 0], [0, 0, 0]], dtype=torch.int32)
GATES = torch.tensor([[0.75, 1.0, 0.0], [0.25, 0.0, 0.0]])


class TestRoutes:
    @pytest.mark.parametrize("extent", [(3,), (torch.tensor([1, 1, 1]),)])
    def test_transposed_with_dropped_choices(self, extent):
        """Routes ``(K, T)``: -1 goes to no expert, the others to theirs with their weight."""
        routing = read_routes((*extent, IDS, SLOTS, GATES), 3)
        assert routing.routing_map_TE.tolist() == [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.0] * 3]

    def test_a_weight_of_zero_is_a_choice(self):
        """A kept route whose weight is rounded to 0 is counted, and adds nothing to the weights."""
        routing = read_routes((3, IDS, SLOTS, GATES * 0), 3)
        assert (routing.routing_map_TE != 0).sum(0).tolist() == [1, 1, 1]
        assert routing.routing_map_TE.max() < 2.0**-30

    @pytest.mark.parametrize(
        "output",
        [
            (IDS, SLOTS, GATES),
            (3, IDS, GATES),
            (3, IDS, SLOTS),
            (3, IDS, SLOTS, GATES[:1]),
            (4, IDS, SLOTS, GATES),
            (3, IDS.float(), SLOTS, GATES),
        ],
    )
    def test_leaves_what_is_something_else(self, output):
        """Without E, slots or weights of that shape they are no routes."""
        assert read_routes(output, 3) is None


class TestBeforeLimit:
    LOGITS = torch.tensor([[3.0, 2.0, 0.0], [0.0, 2.0, 3.0], [1.0, 1.0, 0.0]])

    def test_the_dropped_are_the_highest_of_the_rest(self):
        """What is left is always chosen; what is missing to K is the highest of the others."""
        left = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
        routing = before_limit(left, self.LOGITS, 2)
        assert routing.topk_expert_ids_TK.sort().values.tolist() == [[0, 1], [1, 2], [0, 1]]

    def test_a_tie_is_read_and_not_guessed(self):
        """Where two logits are equal, the one that the map shows was the choice."""
        left = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0]])
        routing = before_limit(left, self.LOGITS, 1)
        assert routing.topk_expert_ids_TK.tolist() == [[0], [2], [1]]


class Top2Gate(nn.Module):
    """A gate after GShard that does as it is told: the slots of three tokens, three dropped."""

    def __init__(self):
        super().__init__()
        self.wg = nn.Linear(4, 2, bias=False)

    def forward(self, hidden):
        """The loss, combine and dispatch."""
        self.wg(hidden)
        return torch.tensor(0.0), torch.where(DISPATCH, COMBINE, 0.0), DISPATCH


class Block(nn.Module):
    """The gate and its experts."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.experts = gate, StackedExperts(2)

    def forward(self, hidden):
        """Calls the gate, and the experts on all rows."""
        self.gate(hidden)
        return self.experts(hidden)


class TestLimited:
    def test_half_of_the_choices_dropped(self, caplog):
        """K is that of the gate, even where as many choices are left as there are tokens.

        Counts are of what is left, dropped says how much is missing, and attach says both.
        """
        model = Block(Top2Gate())
        with moetrace.attach(model, every=1) as tracer:
            tracer.on_step_begin()
            model(HIDDEN)
            tracer.on_step_end()
        (stats,) = tracer.latest
        assert stats.tokens_per_expert.tolist() == [1, 2]
        assert (stats.tokens, stats.top_k, stats.dropped) == (3, 2, 3)
        assert stats.decoded("gate_weight_sum").tolist() == [0.5, 1.0]
        assert "load_cv" not in stats.withheld()
        assert "gate of 1 routers: tokens_per_expert is what a capacity limit" in caplog.text

    def test_what_names_a_limit(self):
        """An attribute with a capacity, or a class called by its K and gate, is a limit."""
        gate = Top2Gate()
        assert is_limited(gate)
        plain = nn.Linear(4, 2)
        assert not is_limited(plain)
        plain.capacity_factor = 1.25
        assert is_limited(plain)

    def test_nllb_that_samples(self):
        """Noise that is added to the logits after the first choice makes them useless for it."""
        router = type("NllbMoeTop2Router", (nn.Module,), {})()
        router.expert_capacity, router.second_expert_policy = 4, "all"
        assert (limit_of(router), is_limited(router)) == (2, False)
        router.second_expert_policy = "sampling"
        assert (limit_of(router), is_limited(router)) == (0, True)

    @pytest.mark.parametrize(
        ("name", "top_k"),
        [("Top2Gate", 2), ("SwitchTop1Router", 1), ("TopKGate", 0), ("Router", 0), ("Top2", 2)],
    )
    def test_k_by_name(self, name, top_k):
        """A class may say its K; no other number in a name is taken for it."""
        assert choices_by_name(type(name, (nn.Module,), {})()) == top_k
