"""PEER_pytorch: product keys in the block, experts as rows of two tables, several heads."""

import pytest
import torch

from tests.readers.packages.watched import D, Model, T, watch

PEER = pytest.importorskip("PEER_pytorch").PEER


def block(**settings):
    """A layer of 16 experts with 2 heads that choose 3 each."""
    return PEER(
        D, heads=2, num_experts=16, num_experts_per_head=3, non_competing_scores=False, **settings
    )


def per_expert(ids):
    """How often each row is looked up."""
    return torch.bincount(ids.flatten(), minlength=16).tolist()


class TestPeer:
    def test_counts_what_is_looked_up(self):
        """Counts are the rows looked up in the other table; a token's heads add up to K."""
        path = "layers.0.moe.weight_up_embed"
        watched = watch(Model(block()), torch.randn(2, 12, D), keep={path: per_expert})
        (stats,) = watched.layers.values()
        assert stats.layer == "layers.0.moe"
        assert [stats.tokens_per_expert.tolist()] == watched.seen[path]
        assert (stats.tokens, stats.top_k, stats.scoring) == (T, 6, "none")

    def test_experts_of_their_own_per_head(self):
        """With tables per head every row is an expert, and the heads share none."""
        path = "layers.0.moe.weight_up_embed"
        model = Model(block(separate_embed_per_head=True))
        keep = {path: lambda ids: torch.bincount(ids.flatten(), minlength=32).tolist()}
        watched = watch(model, torch.randn(2, 12, D), keep=keep)
        (stats,) = watched.layers.values()
        assert stats.num_experts == 32
        assert [stats.tokens_per_expert.tolist()] == watched.seen[path]
        assert stats.tokens_per_expert[:16].sum() == stats.tokens_per_expert[16:].sum() == 3 * T

    def test_padding_is_left_out(self):
        """A mask with an entry per token fits, whatever the number of heads."""
        import moetrace

        model = Model(block())
        mask = torch.ones(2, 12, dtype=torch.bool)
        mask[0, :5] = False
        with moetrace.attach(model, every=1) as tracer, tracer.tokens(mask):
            tracer.on_step_begin()
            model(torch.randn(2, 12, D))
            tracer.on_step_end()
        (stats,) = tracer.latest
        assert (stats.tokens, stats.masked) == (19, 5)
