"""Modules that tempt: they look like a router with its experts and choose nothing among experts."""

import pytest
import torch
from torch import nn

import moetrace


def equal(count, make=lambda: nn.Linear(8, 8)):
    """A list of as many equal modules."""
    return nn.ModuleList(make() for _ in range(count))


class GatedMlp(nn.Module):
    """A GLU: its gate has a row per hidden unit."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        """Rows in, rows out."""
        return self.down(self.gate(x).sigmoid() * self.up(x))


class StackedHeads(nn.Module):
    """One output head per codebook in one stack, beside a matrix with as many rows."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Module()
        self.heads.weight = nn.Parameter(torch.randn(4, 8, 8))
        self.mix = nn.Linear(8, 4)

    def forward(self, x):
        """Rows in, rows out."""
        return torch.einsum("bd,kde->bke", x, self.heads.weight) * self.mix(x)[..., None]


class VectorQuantizer(nn.Module):
    """The nearest row of a codebook, by an argmin."""

    def __init__(self):
        super().__init__()
        self.codebook = nn.Embedding(16, 8)

    def forward(self, x):
        """Rows in, rows out."""
        return self.codebook(torch.cdist(x, self.codebook.weight).argmin(-1))


class ResidualQuantizer(nn.Module):
    """Four codebooks one after the other, each used for every vector."""

    def __init__(self):
        super().__init__()
        self.codebooks = equal(4, VectorQuantizer)
        self.router = nn.Linear(8, 4)

    def forward(self, x):
        """Rows in, rows out."""
        weights = self.router(x).softmax(-1)
        for index, codebook in enumerate(self.codebooks):
            x = x - codebook(x) * weights[:, index, None]
        return x


class MixtureOfDepths(nn.Module):
    """Chooses tokens for one block, and no block for a token."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 1)
        self.blocks = equal(3)

    def forward(self, x):
        """Rows in, rows out."""
        scores = self.router(x).squeeze(-1)
        chosen = scores.topk(2).indices
        for block in self.blocks:
            x = x.index_add(0, chosen, block(x[chosen]))
        return x


class AltUpRouter(nn.Module):
    """Coefficients for the copies of a stream; each is used."""

    def __init__(self):
        super().__init__()
        self.modality_router = nn.Linear(8, 4)

    def forward(self, x):
        """Rows in, rows out."""
        return self.modality_router(x).tanh()


class AltUp(nn.Module):
    """As in Gemma 3n: a router in name, beside as many projections."""

    def __init__(self):
        super().__init__()
        self.router = AltUpRouter()
        self.projections = equal(4)

    def forward(self, x):
        """Rows in, rows out."""
        coefficients = self.router(x)
        streams = torch.stack([projection(x) for projection in self.projections], -1)
        return (streams * coefficients[:, None, :]).sum(-1)


class Indexer(nn.Module):
    """Of sparse attention: returns the positions of the tokens that each token looks at."""

    def __init__(self):
        super().__init__()
        self.weights_proj = nn.Linear(8, 4)
        self.index_topk = 2

    def forward(self, x):
        """Rows in, rows out."""
        scores = self.weights_proj(x) @ self.weights_proj(x).T
        return scores.topk(self.index_topk, dim=-1).indices


class SparseAttention(nn.Module):
    """An indexer beside its heads."""

    def __init__(self):
        super().__init__()
        self.indexer = Indexer()
        self.heads = equal(4)

    def forward(self, x):
        """Rows in, rows out."""
        chosen = self.indexer(x)
        return sum(head(x[chosen].mean(1)) for head in self.heads)


class TwoTowers(nn.Module):
    """Two tables of one size, looked up by ids of a user and of an item; layers of 64 units."""

    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(1024, 8), nn.Embedding(1024, 8)
        self.hidden = nn.Linear(16, 64)

    def forward(self, x):
        """Rows in, rows out."""
        ids = torch.arange(len(x))
        return self.hidden(torch.cat([self.user(ids), self.item(ids)], -1))


class Attention(nn.Module):
    """``nn.MultiheadAttention`` beside heads, and a projection to as many."""

    def __init__(self):
        super().__init__()
        self.attention, self.gate = nn.MultiheadAttention(8, 4), nn.Linear(8, 4)
        self.heads = equal(4)

    def forward(self, x):
        """Rows in, rows out."""
        attended, _ = self.attention(x, x, x)
        gates = self.gate(x).sigmoid()
        return sum(gates[:, i, None] * head(attended) for i, head in enumerate(self.heads))


class Recurrent(nn.Module):
    """Gates of an LSTM and of a GRU."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.gate = nn.LSTM(8, 8, 2), nn.GRU(8, 8), nn.GRUCell(8, 8)

    def forward(self, x):
        """Rows in, rows out."""
        return self.gate(self.gru(self.lstm(x)[0])[0])


class MixtureDensity(nn.Module):
    """Weights of a mixture of distributions: all of them make up the density."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.components = equal(4)

    def forward(self, x):
        """Rows in, rows out."""
        weights = self.gate(x).softmax(-1)
        return sum(weights[:, i, None] * part(x) for i, part in enumerate(self.components))


class Deep(nn.Module):
    """Four equal layers one after the other, and a classifier of four classes."""

    def __init__(self):
        super().__init__()
        self.layers, self.classifier = equal(4), nn.Linear(8, 4)

    def forward(self, x):
        """Rows in, rows out."""
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


class Convolutions(nn.Module):
    """A depthwise convolution of 8 channels before a pointwise one that is a linear of 8 rows."""

    def __init__(self):
        super().__init__()
        self.depthwise, self.pointwise = nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 8)

    def forward(self, x):
        """Rows in, rows out."""
        return self.pointwise(self.depthwise(x.T).T)


class DenoisingClasses(nn.Module):
    """An embedding of three classes beside three blocks, as in RT-DETR."""

    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(3, 8), equal(3)

    def forward(self, x):
        """Rows in, rows out."""
        x = x + self.embed(torch.zeros(len(x), dtype=torch.long))
        return sum(block(x) for block in self.blocks)


class Bilinear(nn.Module):
    """A bilinear form per class: a stack over them, beside a classifier of as many."""

    def __init__(self):
        super().__init__()
        self.pairs, self.router = nn.Bilinear(8, 8, 4), nn.Linear(8, 4)

    def forward(self, x):
        """Rows in, rows out."""
        return self.pairs(x, x) + self.router(x)


TRAPS = (
    GatedMlp,
    StackedHeads,
    VectorQuantizer,
    ResidualQuantizer,
    MixtureOfDepths,
    AltUp,
    SparseAttention,
    TwoTowers,
    Attention,
    Recurrent,
    MixtureDensity,
    Deep,
    Convolutions,
    DenoisingClasses,
    Bilinear,
)


@pytest.mark.parametrize("trap", TRAPS)
class TestTraps:
    def test_is_a_working_model(self, trap):
        """Each trap runs, so that none is refused for a fault of its own."""
        assert torch.isfinite(trap()(torch.randn(5, 8))).all()

    @pytest.mark.parametrize("nested", [False, True])
    def test_has_no_site(self, trap, nested):
        """None is traced, be it the model itself or two layers of one."""
        model = nn.Sequential(trap(), trap()) if nested else trap()
        with pytest.raises(moetrace.NoRouterFound, match="found no router in"):
            moetrace.attach(model)
