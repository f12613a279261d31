"""Blocks as people write them, each small and faithful, with the truth about what they chose.

A block notes its own choice with ``self.note(...)``: that is the oracle, a few plain numbers that
no code of moetrace sees. ``D`` is the width, ``E`` the number of experts, ``K`` how many each token
goes to.
"""

from collections import Counter

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

D, E, K = 8, 6, 2


class Noting(nn.Module):
    """A block that remembers which experts it chose, and how sure it was."""

    def __init__(self):
        super().__init__()
        self.chosen = Counter()
        self.entropies = []

    def note(self, ids, probs=None):
        """Remember chosen experts, rows of any length, and the probabilities behind them."""
        rows = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        self.chosen.update(expert for row in rows for expert in row)
        if probs is not None:
            probs = probs.detach().double()
            self.entropies += (-(probs * probs.clamp_min(1e-300).log()).sum(-1)).tolist()

    @property
    def counts(self):
        """Choices per expert."""
        return [self.chosen[expert] for expert in range(E)]


def expert():
    """One small expert."""
    return nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D))


def experts():
    """A list of experts."""
    return nn.ModuleList(expert() for _ in range(E))


def mixed(listed, flat, ids, weights):
    """Each listed expert on the rows that chose it; all of them weighted and added."""
    out = torch.zeros_like(flat)
    for index, one in enumerate(listed):
        rows, slots = (ids == index).nonzero(as_tuple=True)
        if len(rows):
            out.index_add_(0, rows, one(flat[rows]) * weights[rows, slots].unsqueeze(-1))
    return out


def spread(listed, flat, gates):
    """Each listed expert on the rows that have a gate for it, ``gates`` dense with zeros."""
    out = torch.zeros_like(flat)
    for index, one in enumerate(listed):
        rows = gates[:, index].nonzero().squeeze(-1)
        if len(rows):
            out.index_add_(0, rows, one(flat[rows]) * gates[rows, index].unsqueeze(-1))
    return out


class Stacked(nn.Module):
    """Experts in one parameter, called with the tokens, their experts and the weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(E, D, D) * 0.1)

    def forward(self, hidden, expert_ids, expert_weights):
        """Each token through each of its experts."""
        through = torch.einsum("td,tkdf->tkf", hidden, self.weight[expert_ids])
        return (through * expert_weights.unsqueeze(-1)).sum(1)


# The choice is made in the block, and its listed experts are called with what they get.


class OldMixtral(Noting):
    """The block of Mixtral before transformers 5, as it stands in a thousand repositories."""

    def __init__(self):
        super().__init__()
        self.num_experts, self.top_k = E, K
        self.gate = nn.Linear(D, E, bias=False)
        self.experts = experts()

    def forward(self, hidden_states):
        """Softmax over all experts, top-k, weights normalised."""
        shape = hidden_states.shape
        hidden_states = hidden_states.view(-1, shape[-1])
        router_logits = self.gate(hidden_states)
        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        self.note(selected_experts, router_logits.softmax(-1))
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)
        final = torch.zeros_like(hidden_states)
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)
        for index in range(self.num_experts):
            idx, top_x = torch.where(expert_mask[index])
            current = hidden_states[None, top_x].reshape(-1, shape[-1])
            current = self.experts[index](current) * routing_weights[top_x, idx, None]
            final.index_add_(0, top_x, current.to(hidden_states.dtype))
        return final.reshape(shape)


class NanoMoE(Noting):
    """Top-k of the logits, softmax over the chosen; K is a number of the file."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, E)
        self.experts = experts()

    def forward(self, x):
        """Loop over the experts that got something."""
        flat = x.reshape(-1, D)
        logits = self.gate(flat)
        top, ids = logits.topk(K, dim=-1)
        self.note(ids, logits.softmax(-1))
        return mixed(self.experts, flat, ids, top.softmax(-1)).reshape(x.shape)


class BiasedSigmoid(Noting):
    """Sigmoid scores, chosen with a balancing bias that the block updates, weighed without it."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, E, bias=False)
        self.experts = experts()
        self.num_experts_per_tok = K
        self.register_buffer("expert_bias", torch.linspace(-0.1, 0.1, E))

    def forward(self, x):
        """The loss-free balancing of DeepSeek-V3 in a few lines."""
        flat = x.reshape(-1, D)
        scores = self.gate(flat).sigmoid()
        ids = torch.topk(scores + self.expert_bias, k=self.num_experts_per_tok, dim=-1)[1]
        self.note(ids, scores / scores.sum(-1, keepdim=True))
        if self.training:
            load = torch.bincount(ids.flatten(), minlength=E)
            self.expert_bias = self.expert_bias + 0.05 * torch.sign(load.float().mean() - load)
        weights = scores.gather(1, ids)
        weights = weights / weights.sum(-1, keepdim=True)
        return mixed(self.experts, flat, ids, weights).reshape(x.shape)


class Top1(Noting):
    """The best expert of each token under a temperature, chosen in a method of its own."""

    def __init__(self):
        super().__init__()
        self.router = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, E))
        self.experts = experts()
        self.temperature = 0.5

    def route(self, logits):
        """Probability and index of the best."""
        probs = torch.softmax(logits / self.temperature, dim=-1)
        return torch.max(probs, dim=-1)

    def forward(self, x):
        """Switch without its limit."""
        flat = x.reshape(-1, D)
        logits = self.router(flat)
        prob, best = self.route(logits)
        self.note(best.unsqueeze(1), (logits / self.temperature).softmax(-1))
        return mixed(self.experts, flat, best.unsqueeze(1), prob.unsqueeze(1)).reshape(x.shape)


class Chunked(NanoMoE):
    """The same block, in chunks of four tokens so that the memory is less."""

    def forward(self, x):
        """The gate is called once for each chunk."""
        out = []
        for flat in x.reshape(-1, D).split(4):
            logits = self.gate(flat)
            top, ids = logits.topk(K, dim=-1)
            self.note(ids, logits.softmax(-1))
            out.append(mixed(self.experts, flat, ids, top.softmax(-1)))
        return torch.cat(out).reshape(x.shape)


class LoraExpert(nn.Module):
    """A low-rank pair."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(D, 2, bias=False), nn.Linear(2, D, bias=False)

    def forward(self, x):
        """What it adds."""
        return self.up(self.down(x))


class LoraExperts(Noting):
    """A frozen layer with a mixture of low-rank experts beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(D, D).requires_grad_(False)
        self.lora_route = nn.Linear(D, E, bias=False)
        self.lora_experts = nn.ModuleList(LoraExpert() for _ in range(E))
        self.k = K

    def forward(self, x):
        """Every token goes through the base, and through K of the pairs."""
        flat = x.reshape(-1, D)
        probs = self.lora_route(flat).softmax(-1)
        weights, ids = probs.topk(self.k, -1)
        self.note(ids, probs)
        return (self.base(flat) + mixed(self.lora_experts, flat, ids, weights)).reshape(x.shape)


class PrecisionLayer(Noting):
    """A layer in several precisions; a router picks one for each sequence from its mean."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(D, E)
        self.precisions = nn.ModuleList(nn.Linear(D, D) for _ in range(E))

    def forward(self, x):
        """Each sequence runs in the precision that was picked for it."""
        picked = self.router(x.mean(1)).argmax(dim=-1)
        self.note(picked.unsqueeze(1))
        out = torch.zeros_like(x)
        for index, layer in enumerate(self.precisions):
            if len(rows := (picked == index).nonzero().squeeze(1)):
                out = out.index_add(0, rows, layer(x[rows]))
        return out


# The choice is made in the block, and its experts are called with it.


class Called(Noting):
    """A bare gate, top-k in the block, stacked experts that get it all; compiles in one graph."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, E, bias=False)
        self.experts = Stacked()

    def forward(self, x):
        """Nothing here looks at a value."""
        flat = x.reshape(-1, D)
        probs = self.gate(flat).softmax(-1)
        weights, ids = probs.topk(K, dim=-1)
        if not torch.compiler.is_compiling():
            self.note(ids, probs)
        return self.experts(flat, ids, weights).reshape(x.shape)


class NoisyTopK(Called):
    """Noise on the logits in training, so that nothing can be computed again."""

    def __init__(self):
        super().__init__()
        self.noise = nn.Linear(D, E, bias=False)

    def forward(self, x):
        """Shazeer's noisy top-k."""
        flat = x.reshape(-1, D)
        logits = self.gate(flat)
        noisy = logits
        if self.training:
            noisy = logits + torch.randn_like(logits) * F.softplus(self.noise(flat))
        top, ids = noisy.topk(K, dim=-1)
        self.note(ids, logits.softmax(-1))
        return self.experts(flat, ids, top.softmax(-1)).reshape(x.shape)


class BareParameter(Noting):
    """The gate is a parameter of the block; nothing is called that returns logits."""

    def __init__(self):
        super().__init__()
        self.w_gate = nn.Parameter(torch.randn(D, E))
        self.experts = Stacked()

    def forward(self, x):
        """A product in place of a layer."""
        flat = x.reshape(-1, D)
        weights, ids = (flat @ self.w_gate).softmax(-1).topk(K)
        self.note(ids)
        return self.experts(flat, expert_weights=weights, expert_ids=ids).reshape(x.shape)


class HashRouting(Noting):
    """Experts by token id, from a table that was drawn once."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randint(E, (32, K)))
        self.experts = Stacked()

    def forward(self, x):
        """The token id is what the first entry of its vector says."""
        flat = x.reshape(-1, D)
        ids = self.table[(flat[:, 0].abs() * 31).long() % 32]
        self.note(ids)
        return self.experts(flat, ids, torch.full(ids.shape, 1.0 / K)).reshape(x.shape)
