"""Routers as people write them, as modules of their own, each in a block with its experts."""

import dataclasses
from collections import namedtuple

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from tests.readers.hand_written import D, E, K, Noting, experts, mixed, spread

Choice = namedtuple("Choice", "weights ids router_logits")


@dataclasses.dataclass
class Decision:
    """What a router decides."""

    expert_ids: torch.Tensor
    gates: torch.Tensor
    probs: torch.Tensor


class Scoring(nn.Module):
    """A router with a linear layer inside."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, E, bias=False)


class WeightsIdsLogits(Scoring):
    """Weights first."""

    def forward(self, x):
        """Softmax, then top-k."""
        logits = self.layer(x)
        weights, ids = logits.softmax(-1).topk(K, dim=-1)
        return weights, ids, logits


class ProbsIdsWeights(Scoring):
    """Probabilities, and no logits: a softmax of them would be one too many."""

    def forward(self, x):
        """Ids in the middle."""
        scores = F.softmax(self.layer(x).float(), dim=-1)
        weights, ids = torch.topk(scores, K, dim=-1)
        return scores, ids, weights


class IdsWeights(Scoring):
    """Its logits stay inside."""

    def forward(self, x):
        """Only what the block needs."""
        probs = self.layer(x).softmax(-1)
        weights, ids = probs.topk(K, dim=-1)
        return ids, weights


class InADict(Scoring):
    """A dict, with a loss among its entries."""

    def forward(self, x):
        """Names for everything."""
        logits = self.layer(x)
        weights, ids = logits.softmax(-1).topk(K, dim=-1)
        return {"aux_loss": logits.mean(), "ids": ids, "weights": weights, "logits": logits}


class InANamedTuple(Scoring):
    """A named tuple."""

    def forward(self, x):
        """By position."""
        logits = self.layer(x)
        weights, ids = logits.softmax(-1).topk(K, dim=-1)
        return Choice(weights, ids, logits)


class InADataclass(Scoring):
    """A dataclass, by keyword."""

    def forward(self, x):
        """In another order than its fields."""
        probs = self.layer(x).sigmoid()
        weights, ids = probs.topk(K, dim=-1)
        return Decision(gates=weights, expert_ids=ids, probs=probs)


class Flat(Scoring):
    """One expert per token, without an axis for it."""

    def forward(self, x):
        """Ids and weights of shape (T,)."""
        weights, ids = self.layer(x).softmax(-1).max(dim=-1)
        return ids, weights


class Sparse(Scoring):
    """Gates over all experts with zeros: noisy top-k as Shazeer returns it."""

    def forward(self, x):
        """Noise in training, so that only the gates show the choice."""
        clean = self.layer(x)
        noisy = clean + torch.randn_like(clean) if self.training else clean
        top, ids = noisy.topk(K, dim=-1)
        gates = torch.zeros_like(clean).scatter(1, ids, top.softmax(-1))
        return gates, gates.sum(0)


class TopP(Scoring):
    """As many experts as it takes to gather most of the probability: one to E per token."""

    def forward(self, x):
        """Gates of the chosen, and a mask of them."""
        probs = self.layer(x).softmax(-1)
        ranked, order = probs.sort(-1, descending=True)
        kept = ranked.cumsum(-1) - ranked < 0.4
        mask = torch.zeros_like(probs, dtype=torch.bool).scatter(1, order, kept)
        return probs, mask


class Relu(Scoring):
    """A token goes where its score is positive."""

    def forward(self, x):
        """Gates with true zeros."""
        return F.relu(self.layer(x))


class Limited(Scoring):
    """The best expert of each token, as long as that has room."""

    capacity, top_k = 3, 1

    def forward(self, x):
        """One-hot after the limit, weights and logits, as Switch returns them."""
        logits = self.layer(x)
        best = logits.argmax(-1)
        one_hot = F.one_hot(best, E)
        one_hot = one_hot * (one_hot.cumsum(0) <= self.capacity)
        return one_hot, logits.softmax(-1).amax(-1), logits


class ByExperts(Scoring):
    """Each expert takes the tokens it likes best."""

    def forward(self, x):
        """Weights and tokens (E, C)."""
        affinity = self.layer(x).softmax(-1)
        weights, tokens = affinity.t().topk(4, dim=-1)
        return weights, tokens


class ByTwo(Scoring):
    """Each expert takes two tokens."""

    def forward(self, x):
        """By the share of a token's probability that it has."""
        affinity = self.layer(x).softmax(-1)
        weights, tokens = affinity.t().topk(2, dim=-1)
        return weights, tokens


class Recurrent(nn.Module):
    """A GRU that carries its state from layer to layer, shared by all of them."""

    def __init__(self):
        super().__init__()
        self.load_balancer = nn.GRUCell(D, D)
        self.expression_projector = nn.Linear(D, E, bias=False)

    def forward(self, x, state=None):
        """Ids, weights, logits and the state for the next layer."""
        state = self.load_balancer(x, state)
        logits = self.expression_projector(state)
        weights, ids = torch.topk(F.softmax(logits, dim=-1), K, dim=-1)
        return ids, weights, logits, state


class Logits(Scoring):
    """A router of one's own that scores and leaves the choice to the block."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)

    def forward(self, x):
        """Logits of a normalised input."""
        return self.layer(self.norm(x))


class Block(Noting):
    """A router beside listed experts; what it chose is noted in whatever form it came."""

    def __init__(self, router):
        super().__init__()
        self.router = router
        self.experts = experts()
        self.dropped = 0

    def forward(self, x):
        """Note the choice, run the experts."""
        flat = x.reshape(-1, D)
        out = self.router(flat)
        return self.run(flat, out).reshape(x.shape)

    def run(self, flat, out):
        """Ids and weights wherever they are; gates where there are none."""
        if dataclasses.is_dataclass(out):
            ids, weights = out.expert_ids, out.gates
        elif isinstance(out, dict):
            ids, weights = out["ids"], out["weights"]
        else:
            out = out if isinstance(out, tuple) else (out,)
            whole = [item for item in out if item.dtype is torch.int64]
            if not whole or isinstance(self.router, Limited):
                return self.run_gates(flat, out)
            ids = whole[0]
            weights = next(i for i in out if i.is_floating_point() and i.shape == ids.shape)
        if isinstance(self.router, ByExperts):
            return self.run_by_experts(flat, ids, weights)
        if ids.dim() == 1:
            ids, weights = ids.unsqueeze(1), weights.unsqueeze(1)
        self.note(ids, self.router.layer(flat).softmax(-1))
        return mixed(self.experts, flat, ids, weights)

    def run_gates(self, flat, out):
        """Zeros say where a token does not go."""
        gates = out[0]
        if isinstance(self.router, TopP):
            gates = out[0] * out[1]
        elif isinstance(self.router, Limited):
            gates = out[0] * out[1].unsqueeze(-1)
            self.dropped += int((out[0] == 0).all(-1).sum())
        self.note([row.nonzero().flatten().tolist() for row in gates])
        return spread(self.experts, flat, gates)

    def run_by_experts(self, flat, tokens, weights):
        """Each expert on its tokens."""
        self.note([[expert] * tokens.shape[1] for expert in range(E)])
        out = torch.zeros_like(flat)
        for index, one in enumerate(self.experts):
            rows = tokens[index]
            out = out.index_add(0, rows, one(flat[rows]) * weights[index].unsqueeze(-1))
        return out


class BlockOfLogits(Block):
    """The block chooses from what its router has scored."""

    def forward(self, x):
        """Top-k of a router module's logits."""
        flat = x.reshape(-1, D)
        logits = self.router(flat)
        weights, ids = torch.topk(F.softmax(logits, dim=-1), K, dim=-1)
        self.note(ids, logits.softmax(-1))
        return mixed(self.experts, flat, ids, weights).reshape(x.shape)


class AllComputed(Block):
    """Every expert runs on every token, and what was not chosen is multiplied by zero."""

    def run_gates(self, flat, out):
        """Nothing that an expert is called with says who was chosen."""
        self.note([row.nonzero().flatten().tolist() for row in out[0]])
        return sum(one(flat) * out[0][:, i : i + 1] for i, one in enumerate(self.experts))


class SharedRouter(nn.Module):
    """Two layers with experts of their own, and one recurrent router for both."""

    def __init__(self):
        super().__init__()
        router = Recurrent()
        self.layers = nn.ModuleList(SharedLayer(router) for _ in range(2))

    def forward(self, x):
        """The router's state goes along."""
        state = None
        for layer in self.layers:
            x, state = layer(x, state)
        return x


class SharedLayer(Noting):
    """A layer with a router that belongs to others too."""

    def __init__(self, router):
        super().__init__()
        self.router = router
        self.experts = experts()

    def forward(self, x, state):
        """Route with what the layer before has left."""
        flat = x.reshape(-1, D)
        ids, weights, logits, state = self.router(flat, state)
        self.note(ids, logits.softmax(-1))
        return x + mixed(self.experts, flat, ids, weights).reshape(x.shape), state
