"""Forwards drawn for the forms of the operator, and when two forms agree.

Letters: T tokens, E experts, K chosen per token.
"""

import math

import pytest
import torch
from hypothesis import strategies as st

from moetrace.layout import SCALARS, AccumulatorLayout
from moetrace.routing import Routing

LOGITS, IDS, WEIGHTS = (
    torch.randn(6, 8),
    torch.tensor([[0, 1], [1, 2], [7, 0]] * 2),
    torch.rand(6, 2),
)
ROUTING = Routing(IDS, LOGITS, WEIGHTS)
PLAIN = ("tokens", "calls", "masked", "dropped", "nonfinite")


class Subclass(torch.Tensor):
    """Stands for a DTensor."""


def made(T, E, K, seed=0):
    """A forward of a given size."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, E, generator=generator) * 3
    return Routing(logits.topk(K).indices, logits, torch.rand(T, K, generator=generator))


def assert_equal(ours, truth, num_experts, programs=1, entropy_error=0.0):
    """Counts are equal; sums of reals agree to 2e-5, and one unit for each program's rounding.

    The entropy of each token may be off by ``entropy_error`` nats besides.
    """
    layout = AccumulatorLayout(num_experts)
    whole = [*range(layout.prob_sum), *(layout.scalar(name) for name in PLAIN)]
    assert ours[whole].tolist() == truth[whole].tolist()
    reals = [*range(layout.prob_sum, layout.scalars)]
    assert ours[reals].tolist() == pytest.approx(truth[reals].tolist(), rel=2e-5, abs=programs + 1)
    for name in SCALARS[len(PLAIN) :]:
        at = layout.scalar(name)
        # A sum of signed numbers may cancel; then what counts is the error of one of them.
        slack = 2e-5 * 64 * (1 << 20) if name in ("margin_sum", "lse_sum") else programs + 64
        if name == "entropy_sum":
            slack += entropy_error * int(ours[layout.scalar("tokens")]) * (1 << 26)
        assert int(ours[at]) == pytest.approx(int(truth[at]), rel=2e-5, abs=slack), name


@st.composite
def forwards(draw, *, hostile=True):
    """A forward of a real shape in the model's dtype and strides, with the odd bad value."""
    E = draw(st.sampled_from([2, 3, 8, 60, 64, 128, 160, 256, 384, 512, 1024]))
    K = draw(st.integers(1, min(E, 10)))
    T = draw(st.integers(0, 12) | st.just(40))
    made = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]))
    logits = torch.randn(T, E, generator=made) * draw(st.sampled_from([0.1, 3.0, 30.0]))
    logits = logits.to(dtype)
    ids = logits.float().topk(K).indices if draw(st.booleans()) else None
    if ids is None:  # any experts, and one may come twice
        ids = torch.randint(0, E, (T, K), generator=made)
    ids = ids.to(draw(st.sampled_from([torch.int16, torch.int32, torch.int64])))
    weights = torch.rand(T, K, generator=made).to(draw(st.sampled_from([dtype, torch.float32])))
    if T and hostile:
        for bad in draw(st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), max_size=3)):
            logits[draw(st.integers(0, T - 1)), draw(st.integers(0, E - 1))] = bad
        if draw(st.booleans()):
            logits[0] = -math.inf
        if draw(st.booleans()):
            logits[-1, : E // 2] = -math.inf  # as group-limited routers do
        for bad in draw(st.lists(st.sampled_from([-1, E, 1 << 33, -(1 << 62)]), max_size=3)):
            if ids.dtype == torch.int64 or abs(bad) < 1 << 14:
                ids[draw(st.integers(0, T - 1)), draw(st.integers(0, K - 1))] = bad
        for bad in draw(st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), max_size=1)):
            weights[0, 0] = bad
    if draw(st.booleans()):  # a slice of a wider tensor: the row stride is not the width
        wide = torch.zeros(T, E + 5, dtype=dtype)
        wide[:, :E] = logits
        logits = wide[:, :E]
    if draw(st.booleans()):  # the last dimension is strided
        ids = ids.t().contiguous().t()
    mask = torch.rand(T, generator=made) > 0.3 if draw(st.booleans()) else None
    routing = Routing(ids, logits, weights if draw(st.booleans()) else None)
    return routing, mask, E
