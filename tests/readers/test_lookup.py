import torch
from torch import nn

import moetrace
from moetrace.readers.lookup import looked_up_experts
from moetrace.sinks import MemorySink


class ProductKeys(nn.Module):
    """A layer of 16 experts as rows of two tables, chosen by 4 x 4 product keys, 2 per token."""

    def __init__(self):
        super().__init__()
        self.keys = nn.Linear(4, 8, bias=False)
        self.down = nn.Embedding(16, 4)
        self.up = nn.Embedding(16, 4)

    def forward(self, hidden_TD):
        """Sums of the rows that the highest sums of two half scores point at."""
        rows_TN, columns_TN = self.keys(hidden_TD).chunk(2, dim=-1)
        scores = (rows_TN[:, :, None] + columns_TN[:, None, :]).flatten(1)
        ids_TK = scores.topk(2).indices
        return (self.down(ids_TK) * self.up(ids_TK)).sum(1)


class TestLookupReader:
    def test_counts_product_keys(self):
        """A product-key layer is found without a word, and each lookup is counted once."""
        torch.manual_seed(0)
        model = nn.Sequential(ProductKeys())
        hidden_TD = torch.randn(9, 4)
        truth = torch.zeros(16, dtype=torch.long)

        def tally(module, args):
            truth.index_add_(0, args[0].flatten(), torch.ones(18).long())

        model[0].up.register_forward_pre_hook(tally)
        sink = MemorySink()
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(hidden_TD)
            tracer.on_step_end()
        (stats,) = sink.snapshots[0]
        assert (stats.layer, stats.top_k, stats.scoring) == ("0", 2, "none")
        assert stats.tokens_per_expert.tolist() == truth.tolist()


class TestLookedUpExperts:
    def test_position_tables_are_no_experts(self):
        """Two tables of one size beside a third, as for the layout of a page, hold no expert."""
        block = nn.Module()
        block.left = nn.Embedding(1024, 8)
        block.top = nn.Embedding(1024, 8)
        block.type = nn.Embedding(32, 8)
        assert looked_up_experts(block) is None

    def test_a_million_experts_are_left_to_the_index_probe(self):
        """Tables too large for the sums of routing are traced in another way, and say so."""
        with torch.device("meta"):
            layer = ProductKeys()
            layer.keys = nn.Linear(4, 600)
            layer.down, layer.up = nn.Embedding(90_000, 4), nn.Embedding(90_000, 4)
        (site,) = moetrace.discover(nn.Sequential(layer))
        assert (site.taken, site.reader) == (True, "IndexMeter")
        assert "more than 4096 are counted by the index probe" in site.reason
