import math
import os
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.layout import SCORINGS, AccumulatorLayout
from moetrace.ops import Bin, TracerState, count, host_form, register
from moetrace.ops import library as library_module
from moetrace.ops.fused import operator_form
from moetrace.ops.host_form import add_on_host, has_host_kernel
from moetrace.ops.reference import routing_delta
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

pytestmark = pytest.mark.skipif(not has_host_kernel(), reason="built without a C compiler")


def empty(num_experts):
    """The sums of a router that has counted nothing."""
    width = AccumulatorLayout(num_experts).width
    return torch.zeros(len(Bin), width, dtype=torch.int64)


def by_kernel(routing, mask_T, num_experts, scoring=SOFTMAX):
    """The sums of the kernel alone; None where it leaves the forward to others."""
    sums, lock = empty(num_experts), threading.Lock()
    row = Bin.RECOMPUTED
    added = host_form._add_by_kernel(sums, row, lock, routing, mask_T, num_experts, scoring)
    others = [other for other in Bin if other != row]
    assert not sums[others].any()
    assert not lock.locked()
    if not added:
        assert not sums.any()
        return None
    return sums[row]


class TestEqualsTheComposition:
    @given(forwards(), st.sampled_from(range(len(SCORINGS))))
    @settings(max_examples=300, deadline=None)
    def test_on_any_forward(self, forward, scoring):
        """Counts are exact and sums of reals agree to 2e-5, bad scores, ids and weights included.

        That is on any shape, dtype and stride.
        """
        routing, mask, E = forward
        truth = routing_delta(routing, mask, E, scoring)
        assert_equal(by_kernel(routing, mask, E, scoring), truth, E)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize(
        ("T", "E", "K"),
        [(3000, 64, 8), (5000, 3, 1), (300, 1, 1), (257, 17, 17), (9, 20_000, 8), (16_384, 64, 2)],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_on_many_tokens_and_experts(self, T, E, K, masked, dtype):
        """Sums over more tokens than float32 adds up well, or a million scores, are as exact."""
        routing = made(T, E, K)
        routing = routing._replace(logits_TE=routing.logits_TE.to(dtype))
        mask = torch.arange(T) % 3 > 0 if masked else None
        truth = routing_delta(routing, mask, E, SOFTMAX)
        assert_equal(by_kernel(routing, mask, E), truth, E, T)

    @pytest.mark.parametrize("offset", [-900.0, -40.0, 40.0, 900.0, 5000.0])
    def test_scores_far_from_zero(self, offset):
        """Wherever the scores lie, what depends on their differences is the same."""
        routing = made(300, 64, 8)
        far = routing._replace(logits_TE=routing.logits_TE + offset)
        assert_equal(by_kernel(far, None, 64), routing_delta(far, None, 64, SOFTMAX), 64)

    def test_leading_dimensions(self):
        """Parts of a batch of sequences count as their tokens one behind the other."""
        flat = made(12, 16, 2)
        deep = Routing(*(part.view(3, 4, -1) for part in flat[:3]))
        assert torch.equal(by_kernel(deep, None, 16), by_kernel(flat, None, 16))

    def test_adds_to_what_is_there(self):
        """Two forwards are the sum of both."""
        sums, lock = empty(8), threading.Lock()
        for _ in range(2):
            assert add_on_host(sums, Bin.FIRST, lock, ROUTING, None, 8, SOFTMAX)
        assert torch.equal(sums[Bin.FIRST], 2 * by_kernel(ROUTING, None, 8))


class TestWorkedNumbers:
    def test_two_uniform_tokens(self):
        """Two uniform tokens over four experts have 2 ln 4 nats and half of each expert."""
        routing = Routing(torch.tensor([[0], [3]]), torch.zeros(2, 4), torch.ones(2, 1))
        row, layout = by_kernel(routing, None, 4), AccumulatorLayout(4)
        assert row[:5].tolist() == [1, 0, 0, 1, 0]
        assert row[layout.prob_sum : layout.gate_weight_sum].tolist() == [1 << 29] * 4
        assert row[layout.gate_weight_sum : layout.scalars].tolist() == [1 << 30, 0, 0, 1 << 30]
        entropy = int(row[layout.scalar("entropy_sum")]) / (1 << 26)
        assert entropy == pytest.approx(2 * math.log(4), rel=1e-7)

    def test_the_entropy_of_a_token(self):
        """It is exact to 2e-6 nats against float64, also close to zero, and never below zero."""
        generator = torch.Generator().manual_seed(0)
        at = AccumulatorLayout(64).scalar("entropy_sum")
        for scale in [0.1, 1.0, 5.0, 40.0] * 50:
            logits = torch.randn(1, 64, generator=generator) * scale
            probs = logits.double().softmax(1)
            truth = float(torch.special.entr(probs).sum())
            entropy = int(by_kernel(Routing(IDS[:1], logits), None, 64)[at]) / (1 << 26)
            assert entropy == pytest.approx(truth, abs=2e-6)
            assert entropy >= 0

    @pytest.mark.parametrize(("chosen", "margin"), [(0, 200), (1, -200)])
    def test_a_margin_is_bounded(self, chosen, margin):
        """Log probabilities stop at -200: a score 500 below the best has a margin of 200."""
        routing = Routing(torch.tensor([[chosen]]), torch.tensor([[0.0, -500.0]]))
        row = by_kernel(routing, None, 2)
        assert int(row[AccumulatorLayout(2).scalar("margin_sum")]) >> 20 == margin

    def test_padding(self):
        """A padded token adds one to the masked ones, and nothing else."""
        mask = torch.tensor([True, False, False, False, False, False])
        padded = by_kernel(ROUTING, mask, 8)
        alone = by_kernel(Routing(IDS[:1], LOGITS[:1], WEIGHTS[:1]), None, 8)
        alone[AccumulatorLayout(8).scalar("masked")] = 5
        assert torch.equal(padded, alone)

    def test_without_scores(self):
        """A router that shows its choice alone has counts and gate weights."""
        row, layout = by_kernel(Routing(IDS, None, WEIGHTS * 0 + 1), None, 8), AccumulatorLayout(8)
        assert row[:9].tolist() == [4, 4, 2, 0, 0, 0, 0, 2, 0]
        assert row[layout.gate_weight_sum].item() == 4 << 30
        assert row[layout.prob_sum : layout.gate_weight_sum].sum() == 0
        assert row[layout.scalars :].tolist() == [6, 1, 0, 0, 0, 0, 0, 0, 0, 0]

    def test_a_sum_beyond_its_range(self):
        """What no longer fits stops at 2**62, half of what the row holds, and never wraps."""
        T = 1 << 13
        routing = Routing(torch.zeros(T, 1, dtype=torch.int64), None, torch.full((T, 1), 1024.0))
        row, layout = by_kernel(routing, None, 2), AccumulatorLayout(2)
        assert row[layout.gate_weight_sum].item() == 1 << 53
        many = Routing(routing[0].expand(T, 600), None, routing[2].expand(T, 600))
        assert by_kernel(many, None, 2)[layout.gate_weight_sum].item() == 1 << 62


class TestLeavesToOthers:
    @pytest.mark.parametrize(
        "routing",
        [
            Routing(None, LOGITS),
            Routing(None, LOGITS, None, LOGITS > 0),
            Routing(IDS, LOGITS, None, LOGITS > 0),
            Routing(IDS[:, 0], LOGITS),
            Routing(IDS[:, :0], LOGITS),
            Routing(IDS, LOGITS.int()),
            Routing(IDS.float(), LOGITS),
            Routing(IDS > 0, LOGITS),
            Routing(IDS, torch.zeros(6, 9)),
            Routing(IDS, torch.zeros(5, 8)),
            Routing(IDS, torch.tensor(1.0)),
            Routing(IDS, LOGITS, torch.ones(6, 1)),
            Routing(IDS, LOGITS, IDS),
            Routing(IDS, LOGITS.as_subclass(Subclass)),
            Routing(IDS.as_subclass(Subclass), LOGITS),
            Routing(IDS, LOGITS, WEIGHTS.as_subclass(Subclass)),
            Routing(IDS, torch.view_as_complex(LOGITS.view(6, 4, 2)).conj().imag),
            Routing(IDS.to("meta"), LOGITS.to("meta")),
            Routing(IDS, LOGITS.to_sparse()),
        ],
    )
    def test_what_it_cannot_read(self, routing):
        """Parts that are missing, no plain CPU numbers or of another shape are not touched."""
        assert by_kernel(routing, None, 8) is None

    @pytest.mark.parametrize("mask", [torch.ones(5, dtype=torch.bool), torch.ones(6)])
    def test_a_mask_that_does_not_fit(self, mask):
        """A mask of another size or type is not guessed at."""
        assert by_kernel(ROUTING, mask, 8) is None

    @pytest.mark.parametrize("part", range(3))
    def test_a_part_whose_memory_was_freed(self, part):
        """It is refused with its shape: read, it would end the process, or pass for no scores."""
        parts = [LOGITS.clone(), IDS.clone(), WEIGHTS.clone()]
        parts[part].untyped_storage().resize_(0)
        logits, ids, weights = parts
        shape = r"shape \(6, 8\)" if part == 0 else r"shape \(6, 2\)"
        with pytest.raises(ValueError, match=shape):
            by_kernel(Routing(ids, logits, weights), None, 8)

    def test_where_there_is_no_kernel(self, monkeypatch):
        """Without a compiled kernel numpy counts the same, and what counts can be asked for."""
        truth, sums = by_kernel(ROUTING, None, 8), empty(8)
        monkeypatch.setattr(host_form, "_add", None)
        assert add_on_host(sums, Bin.FIRST, threading.Lock(), ROUTING, None, 8, SOFTMAX)
        assert_equal(sums[Bin.FIRST], truth, 8, entropy_error=4e-6)
        assert operator_form(torch.device("cpu")) == "numpy, since no host kernel was built"

    def test_what_neither_can_count(self):
        """A map is left to the composition, and nothing is added."""
        sums = empty(8)
        routing = Routing(None, LOGITS, None, LOGITS > 0)
        assert not add_on_host(sums, Bin.FIRST, threading.Lock(), routing, None, 8, SOFTMAX)
        assert not sums.any()


@pytest.fixture(params=["kernel", "numpy"])
def form(request, monkeypatch):
    """Either form in turn; what it says a forward adds."""
    if request.param == "numpy":
        monkeypatch.setattr(host_form, "_add", None)

    def added(routing, num_experts):
        sums = empty(num_experts)
        lock = threading.Lock()
        assert add_on_host(sums, Bin.FIRST, lock, routing, None, num_experts, SOFTMAX)
        return sums[Bin.FIRST]

    return added


class TestEitherForm:
    def test_eight_threads_at_once(self, form):
        """Eight threads that run one router lose nothing and mix nothing."""
        state = TracerState()
        register(state)
        accumulator = empty(64)
        routings = [made(96, 64, 4, seed) for seed in range(8)]

        def run(routing):
            for _ in range(20):
                ids, logits, weights, _ = routing
                count(accumulator, logits, ids, weights, None, None, True, True, 0, state.handle)

        threads = [threading.Thread(target=run, args=(routing,)) for routing in routings]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = torch.stack([form(routing, 64) for routing in routings]).sum(0) * 20
        assert torch.equal(accumulator[Bin.FIRST], expected)
        assert not state.errors

    def test_a_forked_child(self, form):
        """A child counts with the memory that its parent had in use, and the parent goes on."""
        expected = form(ROUTING, 8)
        pid = os.fork()
        if pid == 0:
            os._exit(int(not torch.equal(form(ROUTING, 8), expected)))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert torch.equal(form(ROUTING, 8), expected)

    def test_through_the_operator(self, form, monkeypatch):
        """On a CPU the operator asks this form first, and the composition not at all."""
        state = TracerState()
        register(state)
        accumulator = empty(8)
        monkeypatch.setattr(library_module, "routing_delta", None)
        ids, logits, weights, _ = ROUTING
        for _ in range(2):
            count(accumulator, logits, ids, weights, None, None, True, True, 0, state.handle)
        assert torch.equal(accumulator[Bin.FIRST], 2 * form(ROUTING, 8))
        assert (accumulator[Bin.NO_GRAD :].any().item(), state.errors) == (False, {})


class TestLeavesTheProcessAsItIs:
    def test_inputs_and_random_state(self):
        """The model's tensors and the random state are the same before and after."""
        copies, state = [part.clone() for part in ROUTING[:3]], torch.get_rng_state()
        mask = torch.ones(6, dtype=torch.bool)
        by_kernel(ROUTING, mask, 8)
        assert all(torch.equal(*pair) for pair in zip(copies, ROUTING[:3], strict=True))
        assert mask.all()
        assert torch.equal(state, torch.get_rng_state())

    def test_denormal_numbers(self):
        """A library linked with -ffast-math would round them to zero in all of the process."""
        assert np.float32(1e-40) * np.float32(1.0) > 0
        assert torch.tensor(1e-40) * 1.0 > 0

    def test_autocast_and_deterministic_mode(self):
        """Neither changes a sum."""
        plain = by_kernel(ROUTING, None, 8, SCORINGS.index("sigmoid"))
        torch.use_deterministic_algorithms(True)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                inside = by_kernel(ROUTING, None, 8, SCORINGS.index("sigmoid"))
        finally:
            torch.use_deterministic_algorithms(False)
        assert torch.equal(inside, plain)

    def test_is_the_same_however_often(self):
        """The same forward gives the same bits."""
        routing = made(1000, 60, 4)
        assert len({tuple(by_kernel(routing, None, 60).tolist()) for _ in range(5)}) == 1


class TestTheKernelItself:
    def test_refuses_another_number_of_arguments(self):
        """Too few arguments raise."""
        with pytest.raises(TypeError, match="11 whole numbers, found 1"):
            host_form._add(1)

    def test_refuses_what_is_no_number(self):
        """So does what is no whole number of 64 bits."""
        with pytest.raises(TypeError):
            host_form._add(*[None] * 11)
        with pytest.raises(OverflowError):
            host_form._add(*[1 << 70] * 11)

    def test_lets_the_interpreter_go_for_a_large_forward(self):
        """While a million scores are counted the other threads of Python run."""
        routing, sums, lock = made(1 << 16, 64, 2), empty(64), threading.Lock()
        done, seen = threading.Event(), threading.Event()

        def watch():
            while not done.is_set():
                if lock.locked():
                    seen.set()
                time.sleep(0)

        watcher = threading.Thread(target=watch)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000.0)  # so that nobody runs but where the interpreter is let go
        try:
            watcher.start()
            for _ in range(50):
                add_on_host(sums, Bin.FIRST, lock, routing, None, 64, SOFTMAX)
        finally:
            sys.setswitchinterval(interval)
            done.set()
            watcher.join()
        assert seen.is_set()
