import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.layout import FRACTION_BITS, SCALARS, SCORINGS, AccumulatorLayout
from moetrace.ops.reference import routing_delta
from moetrace.routing import Routing


def unpack(delta, num_experts):
    """The fields of a delta by name, sums of reals decoded."""
    layout = AccumulatorLayout(num_experts)
    assert delta.dtype == torch.int64
    assert delta.shape == (layout.width,)
    numbers = delta.tolist()
    fields = {
        "tokens_per_expert": numbers[:num_experts],
        "out_of_range": numbers[layout.out_of_range],
        "prob_sum": numbers[layout.prob_sum : layout.gate_weight_sum],
        "gate_weight_sum": numbers[layout.gate_weight_sum : layout.scalars],
        **{name: numbers[layout.scalar(name)] for name in SCALARS},
    }
    for name, bits in FRACTION_BITS.items():
        fixed = fields[name]
        scale = float(1 << bits)
        fields[name] = [x / scale for x in fixed] if isinstance(fixed, list) else fixed / scale
    return fields


def slow(ids, logits, weights, mask, num_experts, scoring):
    """The same fields, token by token in plain Python floats."""
    truth = {name: 0.0 if name in FRACTION_BITS else 0 for name in SCALARS}
    truth |= {"tokens_per_expert": [0] * num_experts, "out_of_range": 0}
    truth |= {"prob_sum": [0.0] * num_experts, "gate_weight_sum": [0.0] * num_experts}
    truth["calls"] = 1
    for token, row in enumerate(logits):
        if not mask[token]:
            truth["masked"] += 1
            continue
        truth["tokens"] += 1
        for expert, weight in zip(ids[token], weights[token], strict=True):
            if 0 <= expert < num_experts:
                truth["tokens_per_expert"][expert] += 1
                truth["gate_weight_sum"][expert] += weight
            else:
                truth["out_of_range"] += 1
        if not all(x == -math.inf or math.isfinite(x) for x in row) or max(row) == -math.inf:
            truth["nonfinite"] += 1
            continue
        _score(truth, row, ids[token], num_experts, scoring)
    return truth


def _score(truth, row, chosen, num_experts, scoring):
    highest = max(row)
    lse = highest + math.log(sum(math.exp(x - highest) for x in row))
    if scoring == "softmax":
        logp = [x - lse for x in row]
    else:
        log_score = {"sigmoid": _logsigmoid, "sqrtsoftplus": _log_sqrt_softplus}[scoring]
        scores = [log_score(x) for x in row]
        total = math.log(sum(math.exp(s) for s in scores))
        logp = [s - total for s in scores]
    logp = [max(x, -200.0) for x in logp]
    for expert, x in enumerate(logp):
        truth["prob_sum"][expert] += math.exp(x)
        truth["entropy_sum"] -= math.exp(x) * x
    truth["confidence_sum"] += math.exp(max(logp))
    chosen = [expert if 0 <= expert < num_experts else 0 for expert in chosen]
    left = [x for expert, x in enumerate(logp) if expert not in chosen]
    if len(chosen) < num_experts:
        truth["margin_sum"] += min(logp[e] for e in chosen) - max(left)
    truth["lse_sum"] += lse
    truth["lse_sq_sum"] += lse * lse


def _logsigmoid(x):
    return -math.log1p(math.exp(-x)) if x > -700 else x


def _log_sqrt_softplus(x):
    return 0.5 * math.log(math.log1p(math.exp(x))) if x > -math.inf else -math.inf


@st.composite
def forwards(draw):
    """One forward of a router: ids, logits, weights, mask and E, with the odd bad value."""
    T = draw(st.integers(0, 6))
    E = draw(st.integers(2, 9))
    K = draw(st.integers(1, E))
    number = st.floats(-30, 30, width=32) | st.sampled_from([0.0, -math.inf])
    if draw(st.booleans()):
        number = number | st.sampled_from([math.nan, math.inf])
    bad = st.sampled_from([-1, E, 1 << 33, -(1 << 62)])
    ids = [draw(st.permutations(range(E)))[:K] for _ in range(T)]
    if T and draw(st.booleans()):
        ids[0][0] = draw(bad)
    logits = [[draw(number) for _ in range(E)] for _ in range(T)]
    weights = [[draw(st.floats(0, 2, width=32)) for _ in range(K)] for _ in range(T)]
    mask = [draw(st.booleans()) for _ in range(T)]
    return ids, logits, weights, mask, E, K


class TestRoutingDelta:
    @given(forwards(), st.sampled_from(SCORINGS[:3]), st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_equals_a_slow_count(self, forward, scoring, masked):
        """Integers are exact and sums of reals agree with plain Python floats to 2e-5."""
        ids, logits, weights, mask, E, K = forward
        mask = mask if masked else [True] * len(mask)
        routing = Routing(
            torch.tensor(ids, dtype=torch.int64).reshape(-1, K),
            torch.tensor(logits).reshape(-1, E),
            torch.tensor(weights).reshape(-1, K),
        )
        mask_T = torch.tensor(mask, dtype=torch.bool) if masked else None
        ours = unpack(routing_delta(routing, mask_T, E, SCORINGS.index(scoring)), E)
        truth = slow(ids, logits, weights, mask, E, scoring)
        for name, value in truth.items():
            if name in FRACTION_BITS:
                assert ours[name] == pytest.approx(value, rel=2e-5, abs=2e-4), name
            else:
                assert ours[name] == value, name

    def test_a_router_that_shows_probabilities(self):
        """Probabilities are taken as they are: softmax of them would be another entropy."""
        probs = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
        scoring = SCORINGS.index("probabilities")
        fields = unpack(routing_delta(Routing(torch.tensor([[0]]), probs), None, 4, scoring), 4)
        assert fields["prob_sum"] == [0.5, 0.25, 0.25, 0.0]
        assert fields["entropy_sum"] == pytest.approx(1.5 * math.log(2), rel=1e-7)
        assert fields["confidence_sum"] == 0.5

    @given(forwards(), st.booleans())
    @settings(max_examples=100, deadline=None)
    def test_a_map_counts_what_its_ids_would(self, forward, masked):
        """The same choice as ids and as a map over experts gives the same sums."""
        ids, logits, weights, mask, E, K = forward
        ids = [[expert if 0 <= expert < E else 0 for expert in row] for row in ids]
        ids_TK = torch.tensor(ids, dtype=torch.int64).reshape(-1, K)
        logits_TE = torch.tensor(logits).reshape(-1, E)
        weights_TK = torch.tensor(weights).reshape(-1, K) + 0.5
        map_TE = torch.zeros(len(ids), E).scatter(1, ids_TK, weights_TK)
        duplicates = [len(set(row)) < len(row) for row in ids]
        mask_T = torch.tensor(mask, dtype=torch.bool) if masked else None
        if any(duplicates):
            return
        as_ids = unpack(routing_delta(Routing(ids_TK, logits_TE, weights_TK), mask_T, E, 0), E)
        routing = Routing(logits_TE=logits_TE, routing_map_TE=map_TE)
        as_map = unpack(routing_delta(routing, mask_T, E, 0), E)
        if K == E:
            as_ids["margin_sum"] = as_map["margin_sum"]
        assert as_map == as_ids

    def test_a_token_that_goes_nowhere(self):
        """A row of zeros is a token without an expert: counted as a token, and no margin."""
        routing = Routing(
            logits_TE=torch.zeros(2, 2), routing_map_TE=torch.tensor([[0, 0], [0, 1]])
        )
        fields = unpack(routing_delta(routing, None, 2, 0), 2)
        assert (fields["tokens"], fields["tokens_per_expert"]) == (2, [0, 1])
        assert fields["margin_sum"] == 0.0

    def test_autocast_does_not_reach_it(self):
        """Under bfloat16 autocast the sums are those of float32."""
        routing = Routing(torch.tensor([[0]]), torch.tensor([[0.1, 0.2, 0.3]]), torch.ones(1, 1))
        plain = routing_delta(routing, None, 3, 0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(routing_delta(routing, None, 3, 0), plain)

    def test_worked_number(self):
        """Two uniform tokens over four experts have 2 ln 4 nats and a quarter of each expert."""
        routing = Routing(torch.tensor([[0], [3]]), torch.zeros(2, 4), torch.ones(2, 1))
        fields = unpack(routing_delta(routing, None, 4, 0), 4)
        assert fields["entropy_sum"] == pytest.approx(2 * math.log(4), rel=1e-7)
        assert fields["prob_sum"] == [0.5, 0.5, 0.5, 0.5]
        assert fields["tokens_per_expert"] == [1, 0, 0, 1]
        assert fields["confidence_sum"] == 0.5

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
    def test_any_integer_ids(self, dtype):
        """Ids of any integer type count the same."""
        routing = Routing(torch.tensor([[1], [2]], dtype=dtype), torch.zeros(2, 3))
        assert unpack(routing_delta(routing, None, 3, 0), 3)["tokens_per_expert"] == [0, 1, 1]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_any_float_logits(self, dtype):
        """Logits of any float type are read in float32."""
        routing = Routing(torch.tensor([[1]]), torch.zeros(1, 2, dtype=dtype))
        assert unpack(routing_delta(routing, None, 2, 0), 2)["prob_sum"] == [0.5, 0.5]

    def test_leading_dimensions(self):
        """Ids and logits with batch and length in front are flattened alike."""
        routing = Routing(torch.tensor([[[0], [1]]]), torch.zeros(1, 2, 2), torch.ones(1, 2, 1))
        assert unpack(routing_delta(routing, None, 2, 0), 2)["tokens"] == 2

    def test_transposed_ids(self):
        """Ids and weights of any strides are read alike."""
        ids, weights = torch.tensor([[0, 1, 2], [3, 3, 0]]), torch.rand(2, 3)
        plain = routing_delta(Routing(ids.T.contiguous(), None, weights.T.contiguous()), None, 4, 0)
        assert torch.equal(routing_delta(Routing(ids.T, None, weights.T), None, 4, 0), plain)

    def test_without_logits(self):
        """A router that shows no logits is counted; its score sums stay 0."""
        fields = unpack(routing_delta(Routing(torch.tensor([[0], [0]])), None, 2, 0), 2)
        assert (fields["tokens_per_expert"], fields["confidence_sum"]) == ([2, 0], 0.0)

    def test_works_in_deterministic_mode(self):
        """No operation is used that deterministic mode refuses."""
        routing = Routing(torch.tensor([[0]]), torch.zeros(1, 2), torch.ones(1, 1))
        torch.use_deterministic_algorithms(True)
        try:
            routing_delta(routing, torch.ones(1, dtype=torch.bool), 2, 0)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_draws_no_random_number(self):
        """The random state is the same before and after."""
        before = torch.get_rng_state()
        routing_delta(Routing(torch.tensor([[0]]), torch.zeros(1, 2)), None, 2, 0)
        assert torch.equal(before, torch.get_rng_state())

    def test_leaves_its_inputs_alone(self):
        """Logits, ids and weights of the model are not written to."""
        logits, ids, weights = (
            torch.randn(4, 6),
            torch.tensor([[0], [1], [2], [-1]]),
            torch.rand(4, 1),
        )
        copies = logits.clone(), ids.clone(), weights.clone()
        routing_delta(Routing(ids, logits, weights), None, 6, 0)
        assert torch.equal(logits, copies[0])
        assert torch.equal(ids, copies[1])
        assert torch.equal(weights, copies[2])

    def test_counts_do_not_depend_on_the_split(self):
        """Micro-batches of any size add up to the same counts and sums, prob_sum apart."""
        torch.manual_seed(0)
        logits = torch.randn(32, 8)
        ids = logits.topk(2).indices
        whole = routing_delta(Routing(ids, logits), None, 8, 0)
        parts = sum(
            routing_delta(Routing(ids[i : i + 4], logits[i : i + 4]), None, 8, 0)
            for i in range(0, 32, 4)
        )
        layout = AccumulatorLayout(8)
        keep = [*range(9), layout.scalar("tokens"), layout.scalar("entropy_sum")]
        keep += [layout.scalar("lse_sum"), layout.scalar("margin_sum")]
        assert whole[keep].tolist() == parts[keep].tolist()
