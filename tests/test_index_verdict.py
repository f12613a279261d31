"""What is said of a table of experts, and what is not said where chance explains it."""

import numpy as np
import pytest
import torch

import moetrace
from moetrace.index_stats import index_stats_of
from moetrace.index_verdict import ADVICE, index_verdicts
from moetrace.probes import IndexProbe
from tests.product_keys import ProductKeyLayer, ProductKeyModel


def said(counts, *, tokens=None, columns=32, **settings):
    """Kinds that are met in a window, with their texts."""
    counts = np.asarray(counts, np.int64)
    tokens = int(counts.sum()) // 8 if tokens is None else tokens
    stats = index_stats_of("ffn", counts, columns=columns, scalars={"tokens": tokens})
    return {item.kind: item.text for item in index_verdicts(stats, **settings) if item.met}


class TestUnreachable:
    def test_the_sum_of_sub_keys_is_named_in_the_first_window(self):
        """S2-18: a layer that adds its sub-keys is told apart from a sound one by one step."""
        torch.manual_seed(0)
        layers = [ProductKeyLayer(), ProductKeyLayer(sums_keys=True)]
        model = ProductKeyModel(layers)
        with moetrace.attach(model, every=1, probes=[IndexProbe()]) as tracer:
            tracer.on_step_begin()
            model(torch.randn(16, 32, 16)).sum().backward()
            tracer.on_step_end()
            sound, wrong = tracer.flush().indices
        assert "unreachable_experts" not in {v.kind for v in index_verdicts(sound) if v.met}
        (verdict,) = index_verdicts(wrong)
        assert verdict.met
        assert not verdict.lasting
        assert "30 of 32 row keys dead" in verdict.text
        assert "of 1,024: structural, not load imbalance" in verdict.text
        assert "where i * 32 + j would reach every expert" in verdict.text
        assert wrong.highest <= 62

    def test_a_cut_that_is_no_sum(self):
        """Indices that end at a quarter of the table are structural too, without a guess why."""
        counts = np.zeros(1024)
        counts[:256] = 40
        text = said(counts)["unreachable_experts"]
        assert "no index above 255 of 1,024" in text
        assert "look like" not in text

    def test_a_collapse_is_not_structural(self):
        """A few experts with everything are a collapse: their indices do not fill a range."""
        counts = np.zeros(1024)
        counts[[3, 40, 200]] = 4000
        assert "unreachable_experts" not in said(counts)

    def test_two_tokens_prove_nothing(self):
        """That so few tokens stay in one half of the table happens by chance."""
        counts = np.zeros(1024)
        counts[:16] = 1
        assert "unreachable_experts" not in said(counts, tokens=2)


class TestChance:
    @pytest.mark.parametrize("mean", [0.25, 1, 16])
    def test_a_uniform_draw_is_never_accused(self, mean):
        """Few draws leave experts unused and make some hot; nothing is said of that."""
        rng = np.random.default_rng(0)
        for _ in range(20):
            counts = np.bincount(rng.integers(0, 16_384, int(16_384 * mean)), minlength=16_384)
            assert said(counts, columns=128) == {}

    def test_nothing_drawn_says_nothing(self):
        """A table without a draw has no verdict."""
        assert index_verdicts(index_stats_of("ffn", np.zeros(8, np.int64))) == []


class TestKinds:
    def test_dead_sub_keys(self):
        """Rows that no token chose are named with what chance would leave."""
        rng = np.random.default_rng(0)
        counts = rng.poisson(8, (32, 32))
        counts[::2] = 0
        assert said(counts.reshape(-1))["dead_sub_keys"] == (
            "16 of 32 row keys dead, where chance alone leaves 0.0 % without a draw"
        )

    def test_low_coverage(self):
        """S2-13: a small part of the experts used, where a uniform draw would reach nearly all."""
        rng = np.random.default_rng(0)
        counts = np.zeros(1024, np.int64)
        counts[rng.permutation(1024)[:300]] = 30
        text = said(counts)["low_coverage"]
        assert text == "29.3 % of 1,024 experts drawn, where a uniform draw would reach 100.0 %"

    def test_hot_experts(self):
        """S2-10, S2-13: hot experts are counted, and the hottest named with their load."""
        counts = np.full(1024, 10)
        counts[[5, 9]] = [200, 100]
        assert said(counts)["hot_experts"] == (
            "2 hot experts (expert 5 at 19.47, expert 9 at 9.73 times the mean over all experts)"
        )

    def test_advice_names_the_four_levers(self):
        """S2-18: causes and levers are named, and none is claimed to be it."""
        for lever in ("num_heads", "query_dim", "training data", "learning rate", "initialis"):
            assert lever in ADVICE
        assert "possible causes" in ADVICE
