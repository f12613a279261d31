"""Numbers that break counters: not finite, out of range, too large, none at all."""

import contextlib
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import moetrace
from moetrace.accumulator import Accumulators
from moetrace.layout import SATURATED, SCALARS, AccumulatorLayout
from moetrace.metrics import METRICS
from moetrace.ops import Bin
from moetrace.routing_stats import COUNTERS, RoutingStats, merge_stats
from moetrace.sinks import MemorySink
from moetrace.store.lines import DamagedRecord, open_line, plain, restored, seal_line
from tests.store.windows import stats, window, write
from tests.tiny import ScriptedModel


class Told(nn.Module):
    """A router that returns what it is told to."""

    def __init__(self, experts):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, 4))
        self.told = None

    def forward(self, hidden):
        """What was told, whatever came in."""
        return self.told


class ToldReader:
    """Reads it."""

    def matches(self, module):
        """Whether it is one."""
        return isinstance(module, Told)

    def read(self, module, args, kwargs, output):
        """Its ids and logits."""
        ids, logits = output
        return moetrace.Routing(ids, logits)


def counted(*told, experts=4):
    """What one window holds after steps in which the router returned these ids and logits."""
    router, sink = Told(experts), MemorySink()
    model = nn.Sequential(router)
    with moetrace.attach(model, every=len(told), sinks=[sink], readers=[ToldReader()]) as tracer:
        for output in told:
            router.told = output
            tracer.on_step_begin()
            model(torch.ones(1, 4))
            tracer.on_step_end()
    return sink.snapshots[0].routing[0]


class TestNotFinite:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_logits(self, bad):
        """G1: a token with a logit that is none is counted and flagged, and is in no mean."""
        logits = torch.tensor([[1.0, 0.0, 0.0, 0.0], [bad, 0.0, 0.0, 0.0]])
        ids = torch.tensor([[0], [2]])
        found = counted((ids, logits), (ids[:1], logits[:1]))
        assert found.tokens_per_expert.tolist() == [2, 0, 1, 0]
        assert (found.tokens, found.nonfinite, found.scored_tokens) == (3, 1, 2)
        clean = counted((ids[:1], logits[:1]), (ids[:1], logits[:1]))
        assert found.mean("entropy_sum") == pytest.approx(clean.mean("entropy_sum"), rel=1e-6)
        assert not any(np.isnan(value) for value in found.metrics().values() if value is not None)

    @given(st.recursive(st.floats() | st.integers(-(2**63), 2**64 - 1), st.lists, max_leaves=5))
    def test_round_trip(self, value):
        """G2, G9: every float comes back as it was: NaN, infinities, -0.0, denormals, 1e308."""
        line = seal_line({"value": plain(value)})
        assert b"null" not in line
        assert repr(restored(open_line(line)["value"])) == repr(value)

    @pytest.mark.parametrize("value", [5e-324, -0.0, 1e308, sys.float_info.max])
    def test_in_a_run(self, value, tmp_path):
        """G9: what stands in a window's health is the same number after reading."""
        write(tmp_path, [window(health={"loss": value})])
        (found,) = moetrace.open_run(tmp_path).snapshots()
        assert repr(found.health["loss"]) == repr(value)


class TestIndices:
    @pytest.mark.parametrize("bad", [-1, 4, 2**33, -(2**63), 2**63 - 1])
    def test_out_of_range(self, bad):
        """G3: an id that is no expert goes to the overflow bin, however large; nothing raises."""
        found = counted((torch.tensor([[0], [bad]]), None))
        assert (found.tokens_per_expert.tolist(), found.out_of_range) == ([1, 0, 0, 0], 1)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
    def test_any_integer_type(self, dtype):
        """G3: ids of any integer type count alike."""
        found = counted((torch.tensor([[3], [1]], dtype=dtype), None))
        assert found.tokens_per_expert.tolist() == [0, 1, 0, 1]

    def test_floats_are_no_ids(self):
        """G3: ids that are floats count nothing or what they say, and nothing raises."""
        found = counted((torch.tensor([[1.0], [2.0]]), None))
        assert int(found.tokens_per_expert.sum()) in (0, 2)


class TestNothing:
    @pytest.mark.parametrize(
        "ids", [torch.zeros(0, 2, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)]
    )
    def test_no_tokens_and_no_choices(self, ids):
        """G4: a forward without tokens, or a top-k of 0, is a window whose ratios are undefined."""
        found = counted((ids, None))
        assert found.tokens_per_expert.tolist() == [0, 0, 0, 0]
        assert found.metrics()["load_cv"] is None

    def test_more_choices_than_experts(self):
        """G4: a top-k beyond the number of experts is counted as it is."""
        found = counted((torch.tensor([[0, 1, 2, 3, 3]]), None))
        assert found.tokens_per_expert.tolist() == [1, 1, 1, 2]
        assert found.top_k == 5

    def test_all_masked(self):
        """G4: a batch of padding is a window with 0 tokens."""
        model, sink = ScriptedModel([[0], [1]], num_experts=2).train(), MemorySink()
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(torch.ones(2, 4), attention_mask=torch.zeros(1, 2))
            tracer.on_step_end()
        found = sink.snapshots[0].routing[0]
        assert (found.tokens, found.masked, found.tokens_per_expert.tolist()) == (0, 2, [0, 0])
        assert {found.metrics()[name] for name in ("load_cv", "max_vio", "confidence")} == {None}


class TestLarge:
    @pytest.mark.parametrize("count", [2**31 - 1, 2**31, 2**53 + 1, SATURATED])
    def test_counts_are_exact(self, count, tmp_path):
        """G5: counts beyond int32 and beyond what a float64 holds come back to the last token."""
        item = RoutingStats("a", 2, 1, "none", [count, 1], [0, 0], [0, 0], tokens=count)
        held = window(0)
        object.__setattr__(held, "routing", (item,))
        write(tmp_path, [held])
        (found,) = moetrace.open_run(tmp_path).snapshots()
        assert found["a"].tokens_per_expert.tolist() == [count, 1]

    @given(
        st.lists(
            st.tuples(st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
            min_size=1,
            max_size=4,
        )
    )
    def test_sums_stop_and_never_wrap(self, values):
        """G6: windows near 2**63 add to the exact sum or stop at 2**62 - 1, and say so."""
        parts = [
            RoutingStats("a", 1, 1, "softmax", [n], [0], [0], tokens=n, margin_sum=m)
            for n, m in values
        ]
        found = merge_stats(parts)
        total, signed = sum(n for n, _ in values), sum(m for _, m in values)
        assert found.tokens == min(total, SATURATED)
        assert found.margin_sum == max(-SATURATED, min(signed, SATURATED))
        assert 0 <= found.tokens_per_expert[0] <= SATURATED
        if total < SATURATED and all(abs(m) < SATURATED for _, m in values):
            assert found.tokens_per_expert[0] == total
        assert found.saturated or max(found.tokens, abs(found.margin_sum)) < SATURATED

    def test_on_the_device(self):
        """G6: a window of weeks stays positive, and says that it is full: 3,000 steps of 2**52."""
        accumulators = Accumulators([AccumulatorLayout(1)], [torch.device("cpu")])
        for _ in range(3_000):
            accumulators.tensors[0][Bin.FIRST] = 2**52
            accumulators.commit(undecided=False)
            (packed,) = accumulators.window("train")
            assert packed.sums.min() > 0
        assert packed.sums.min() >= SATURATED

    def test_is_flagged(self):
        """G6: a window with a sum that is full says in how many layers."""
        model, sink = ScriptedModel([[0], [0]], num_experts=2).train(), MemorySink()
        with moetrace.attach(model, every=3, sinks=[sink]) as tracer:
            for step in range(3):
                tracer.on_step_begin()
                model(torch.ones(2, 4))
                tracer.on_step_end()
                if step == 0:
                    (packed,) = tracer._recording._accumulators.window("train")
                    packed.sums[0] = SATURATED
        assert sink.snapshots[0].health["saturated_layers"] == 1

    @given(st.lists(st.integers(0, 2**28), min_size=1, max_size=6))
    def test_ordinary_sums_are_plain_sums(self, values):
        """G5: far from the end, windows add as integers do."""
        parts = [stats("a", (value, 1)) for value in values]
        assert merge_stats(parts).tokens_per_expert.tolist() == [sum(values), len(values)]
        assert not merge_stats(parts).saturated


class TestHostileValues:
    @pytest.mark.parametrize(
        "value", [2**64, "\ud800", {("a", 1): 2}, {1: 2}, np.float32("nan"), np.int64(3), (1, 2)]
    )
    def test_are_stored_or_refused_by_name(self, value):
        """G7: what JSON cannot hold is written in another form, or refused before anything is."""
        with contextlib.suppress(TypeError, ValueError):
            assert open_line(seal_line({"value": plain(value)})).keys() == {"value"}

    def test_without_an_end(self):
        """G8: what is nested too deep, or holds itself, is refused in words; no RecursionError."""
        deep, around = [], []
        for _ in range(10_000):
            deep = [deep]
        around.append(around)
        for value in (deep, around):
            with pytest.raises(ValueError, match="containers inside each other"):
                plain(value)
            with pytest.raises(DamagedRecord):
                restored(value)


class TestChangesInTheMiddle:
    def test_of_the_number_type(self):
        """G10: autocast that comes and goes changes no count and no loss."""
        losses = []
        for traced in (False, True):
            torch.manual_seed(0)
            model, sink = ScriptedModel([[0], [1]], num_experts=2).train(), MemorySink()
            tracer = moetrace.attach(model, every=4, sinks=[sink]) if traced else None
            for step in range(4):
                if tracer:
                    tracer.on_step_begin()
                with torch.autocast("cpu", torch.bfloat16, enabled=step % 2 == 1):
                    losses.append(model(torch.randn(2, 4)).sum().item())
                if tracer:
                    tracer.on_step_end()
                    if step == 3:
                        tracer.close()
        assert losses[:4] == losses[4:]
        assert sink.snapshots[0].routing[0].tokens_per_expert.tolist() == [4, 4]

    def test_of_the_number_of_layers(self, tmp_path):
        """G11: a model that has grown is attached again; the run shows both sizes."""
        for blocks in (1, 2):
            model = ScriptedModel(*[[[0], [1]]] * blocks, num_experts=2).train()
            with moetrace.attach(model, tmp_path, every=1) as tracer:
                tracer.on_step_begin(blocks)
                model(torch.ones(2, 4))
                tracer.on_step_end(blocks)
        run = moetrace.open_run(tmp_path)
        assert run.layers == ("blocks.0", "blocks.1")
        assert run.counts().tolist() == [[[1, 1], [-1, -1]], [[1, 1], [1, 1]]]
        assert run.faults == ()


def test_every_scalar_saturates():
    """G6: no counter is left out of the saturating sum, nor any metric of a window that is full."""
    full = RoutingStats(
        "a", 1, 1, "softmax", [SATURATED], [SATURATED], [SATURATED],
        **dict.fromkeys(SCALARS, SATURATED), out_of_range=SATURATED, identity=SATURATED,
    )  # fmt: skip
    found = merge_stats([full, full])
    assert {getattr(found, name) for name in COUNTERS} == {SATURATED}
    assert set(found.metrics()) == set(METRICS)
