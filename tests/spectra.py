"""A toy of the router that the weight tracker was written for: a GRU and a projector."""

import torch
from torch import nn


class SpectraRouter(nn.Module):
    """Scores 4 experts by a GRU over the tokens and a projection."""

    def __init__(self, *, cell=False, layers=1, bias=True):
        super().__init__()
        gru = nn.GRUCell(8, 8, bias) if cell else nn.GRU(8, 8, layers, bias, batch_first=True)
        self.load_balancer = gru
        self.expression_projector = nn.Linear(8, 4, bias=False)

    def forward(self, hidden):
        """Scores per token."""
        if isinstance(self.load_balancer, nn.GRUCell):
            state = self.load_balancer(hidden.flatten(0, -2)).view_as(hidden)
        else:
            state, _ = self.load_balancer(hidden)
        return self.expression_projector(state).softmax(-1)


class SpectraBlock(nn.Module):
    """A router, its own or a shared one, and four experts."""

    def __init__(self, router):
        super().__init__()
        self.router = router
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, hidden):
        """All experts, weighed."""
        mixed = torch.stack([expert(hidden) for expert in self.experts], -1)
        return (mixed * self.router(hidden).unsqueeze(-2)).sum(-1)


class SpectraModel(nn.Module):
    """Two layers; called like a model of transformers."""

    def __init__(self, *, shared=False, **options):
        super().__init__()
        torch.manual_seed(0)
        routers = [SpectraRouter(**options) for _ in range(1 if shared else 2)]
        self.embed_tokens = nn.Embedding(16, 8)
        self.layers = nn.ModuleList(SpectraBlock(routers[i % len(routers)]) for i in range(2))
        self.lm_head = nn.Linear(8, 16)

    def forward(self, input_ids, labels=None):
        """Logits, and the loss where there are labels."""
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        logits = self.lm_head(hidden)
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def moved(model, by=0.5):
    """Add a number to every weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by
