"""Whether what is read as logits are probabilities, told from the sums of windows alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace.diagnosis.double_softmax import adds_up_to_one
from moetrace.diagnosis.windows import check_windows
from moetrace.layout import FRACTION_BITS
from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot


def window_of(logits_TE, step=1):
    """A window in which a softmax router showed these logits, its sums formed in float64."""
    T, E = logits_TE.shape
    lse_T = np.log(np.exp(logits_TE).sum(1))
    probs_TE = np.exp(logits_TE - lse_T[:, None])
    entropy_T = lse_T - (probs_TE * logits_TE).sum(1)
    sums = {"entropy_sum": entropy_T, "lse_sum": lse_T, "lse_sq_sum": lse_T**2}
    stats = RoutingStats(
        "mlp",
        E,
        1,
        "softmax",
        np.bincount(logits_TE.argmax(1), minlength=E),
        np.rint(probs_TE.sum(0) * (1 << FRACTION_BITS["prob_sum"])).astype(np.int64),
        np.zeros(E, dtype=np.int64),
        tokens=T,
        calls=1,
        **{name: round(row.sum() * (1 << FRACTION_BITS[name])) for name, row in sums.items()},
    )
    return Snapshot("run", 0, 0, step, "train", step, step, 0.0, (stats,))


def said(windows):
    """Severity of what the doctor says of a second softmax; None where it says nothing."""
    kinds = {finding.kind: finding.severity for finding in check_windows(windows, {})}
    return kinds.get("logits-are-probabilities")


class TestProbabilities:
    @given(
        st.sampled_from([2, 3, 4, 8, 16, 64, 128]),
        st.sampled_from([0.001, 0.05, 0.3, 1.0, 10.0]),
        st.integers(0, 2**32 - 1),
    )
    @settings(max_examples=60, deadline=None)
    def test_always_look_so(self, E, sharpness, seed):
        """However sharp and however many, probabilities are never taken for logits."""
        probabilities_TE = np.random.default_rng(seed).dirichlet([sharpness] * E, size=64)
        assert adds_up_to_one(window_of(probabilities_TE).routing[0]) is True

    def test_are_an_error_after_three_windows(self):
        """One window or two may be chance: a note. Three that all look so: an error."""
        rng = np.random.default_rng(0)
        windows = [window_of(rng.dirichlet([1.0] * 8, size=64), step) for step in (1, 2, 3)]
        assert [said(windows[:count]) for count in (1, 2, 3)] == ["note", "note", "error"]


class TestLogits:
    def test_that_pass_through_the_band_are_logits(self):
        """A young router whose mean logit drifts past 1/E looks so for a while, and is fine."""
        rng = np.random.default_rng(0)
        windows = [
            window_of(mean + 0.05 * rng.standard_normal((256, 16)), step)
            for step, mean in enumerate(np.linspace(0.055, 0.07, 31), 1)
        ]
        looks = [adds_up_to_one(window.routing[0]) for window in windows]
        assert any(looks)
        assert said(windows) is None

    @pytest.mark.parametrize("experts", [8, 16, 128])
    def test_seldom_look_so_even_once(self, experts):
        """Of 500 routers with logits of all sizes fewer than one in 50 look so in a window."""
        rng = np.random.default_rng(experts)
        looks = [
            adds_up_to_one(
                window_of(
                    rng.normal(0, 0.5) + rng.uniform(0.01, 2) * rng.standard_normal((64, experts))
                ).routing[0]
            )
            for _ in range(500)
        ]
        assert sum(looks) < 10
