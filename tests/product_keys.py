"""A PEER layer of our own, whose keys a test sets, and models that hold some of them."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class ProductKeyLayer(nn.Module):
    """``side * side`` experts, H heads that choose K each.

    With ``sums_keys`` it makes the mistake that product-key layers are written with: an expert's
    index is the sum of its two sub-keys, and most experts cannot be reached.
    """

    def __init__(self, dim=16, *, side=32, heads=2, top_k=4, sums_keys=False):
        super().__init__()
        self.side, self.heads, self.top_k, self.sums_keys = side, heads, top_k, sums_keys
        self.queries = nn.Linear(dim, 2 * heads * 8, bias=False)
        self.keys = nn.Parameter(torch.randn(2, heads, side, 8))
        self.expert_down = nn.Embedding(side * side, dim)
        self.expert_up = nn.Embedding(side * side, dim)
        self.score_activation = nn.Softmax(dim=-1)

    def forward(self, x):
        """``(B, S, D)`` in and out."""
        B, S, _ = x.shape
        queries = self.queries(x).view(B, S, 2, self.heads, 8)
        halves = torch.einsum("bsphd,phkd->pbshk", queries, self.keys)
        scores, ids = halves.topk(self.top_k, dim=-1)
        both = scores[0].unsqueeze(-1) + scores[1].unsqueeze(-2)
        step = 1 if self.sums_keys else self.side
        joint = ids[0].unsqueeze(-1) * step + ids[1].unsqueeze(-2)
        best, at = both.flatten(-2).topk(self.top_k, dim=-1)
        experts = joint.flatten(-2).gather(-1, at)
        down, up = self.expert_down(experts), self.expert_up(experts)
        hidden = functional.gelu(torch.einsum("bsd,bshkd->bshk", x, down))
        return torch.einsum("bshk,bshkd->bsd", hidden * self.score_activation(best), up)


class ProductKeyModel(nn.Module):
    """Layers one after the other; ``checkpointed`` is None, ``"reentrant"`` or ``"other"``."""

    def __init__(self, layers, *, checkpointed=None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpointed = checkpointed

    def forward(self, x, attention_mask=None):
        """Each layer adds to what it gets."""
        for layer in self.layers:
            if self.checkpointed is None:
                x = x + layer(x)
            else:
                reentrant = self.checkpointed == "reentrant"
                x = x + checkpoint(layer, x, use_reentrant=reentrant)
        return x


class Lookups:
    """What really went into a table: every first execution, by a hook that only a test can afford.

    Args:
        table: The embedding.
        num_experts: Its rows.
    """

    def __init__(self, table, num_experts):
        self.counts = torch.zeros(num_experts, dtype=torch.int64)
        self.calls = []
        table.register_forward_pre_hook(self._note)

    def _note(self, module, args):
        self.calls.append(args[0].detach().clone())

    def of(self, calls):
        """Draws per expert of some of the calls, counted one by one."""
        counts = [0] * len(self.counts)
        for call in calls:
            for expert in call.flatten().tolist():
                counts[expert] += 1
        return counts


def counts_of(stats):
    """A record's draws per expert, put together from its list of the busiest."""
    return dict(zip(stats.top_experts, stats.top_draws, strict=True))
