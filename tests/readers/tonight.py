"""Gates as somebody might write them tonight; each block notes its own choice."""

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody writes it
from torch import nn

from tests.readers.hand_written import D, E, K, Noting, expert, experts, mixed, spread


class HashRouter(nn.Module):
    """Experts by the side of four random planes, weights under a learned temperature."""

    def __init__(self):
        super().__init__()
        self.register_buffer("planes", torch.randn(4, D))
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        """Two neighbouring experts; nothing here has a row per expert."""
        code = ((x @ self.planes.t() > 0) * torch.tensor([1, 2, 4, 8])).sum(-1)
        ids = torch.stack([code % E, (code + 1) % E], -1)
        weights = torch.tensor([1.0, 0.5]) / self.log_temperature.exp()
        return ids, weights.softmax(-1).expand(ids.shape)


class Hashed(Noting):
    """A block with that router."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = HashRouter(), experts()

    def forward(self, x):
        """Route and mix."""
        flat = x.reshape(-1, D)
        ids, weights = self.router(flat)
        self.note(ids)
        return mixed(self.experts, flat, ids, weights).reshape(x.shape)


class TopPMinK(nn.Module):
    """As many experts as hold half of the probability, and two at least."""

    def __init__(self, p=0.5, min_k=2):
        super().__init__()
        self.proj = nn.Linear(D, E, bias=False)
        self.p, self.min_k = p, min_k

    def forward(self, x):
        """Gates with zeros, normalised."""
        probs = self.proj(x).softmax(-1)
        ranked, order = probs.sort(-1, descending=True)
        keep = (ranked.cumsum(-1) - ranked) < self.p
        keep[..., : self.min_k] = True
        gates = probs * torch.zeros_like(probs).scatter(-1, order, keep.to(probs.dtype))
        return gates / gates.sum(-1, keepdim=True)


class TopP(Noting):
    """A block with that gate."""

    def __init__(self):
        super().__init__()
        self.gating, self.experts = TopPMinK(), experts()

    def forward(self, x):
        """Each expert on the tokens that have a gate for it."""
        flat = x.reshape(-1, D)
        gates = self.gating(flat)
        self.note([row.nonzero().flatten().tolist() for row in gates])
        return spread(self.experts, flat, gates).reshape(x.shape)


class CosineGate(nn.Module):
    """Scores are cosines under a learned temperature."""

    def __init__(self):
        super().__init__()
        self.sim = nn.Parameter(torch.randn(E, D))
        self.tau = nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        """One score per expert."""
        return F.normalize(x, dim=-1) @ F.normalize(self.sim, dim=-1).t() * self.tau.clamp(max=100)


class Cosine(Noting):
    """The top-k is the block's."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = CosineGate(), experts()

    def forward(self, x):
        """A loop over experts with index_add."""
        flat = x.reshape(-1, D)
        top, ids = self.gate(flat).topk(K, dim=-1)
        self.note(ids)
        weights, out = top.softmax(-1), torch.zeros_like(flat)
        for index in range(E):
            token, slot = torch.where(ids == index)
            if token.numel():
                part = self.experts[index](flat[token]) * weights[token, slot, None]
                out.index_add_(0, token, part)
        return out.reshape(x.shape)


class GroupLimited(Noting):
    """DeepSeek-V3 in one block: a bare matrix, groups, a bias, and a shared expert."""

    def __init__(self):
        super().__init__()
        self.gate_weight = nn.Parameter(torch.randn(E, D))
        self.register_buffer("bias", torch.linspace(-0.1, 0.1, E))
        self.experts, self.shared = experts(), expert()

    def scores(self, flat):
        """Sigmoids."""
        return F.linear(flat, self.gate_weight).sigmoid()

    def choice(self, ids):
        """What the block does with its choice: nothing."""
        return ids

    def forward(self, x):
        """Two of three groups, two experts of those."""
        flat = x.reshape(-1, D)
        scores = self.scores(flat)
        biased = scores + self.bias
        groups = biased.view(-1, 3, 2).sum(-1).topk(2, dim=-1)[1]
        open_ = torch.zeros(len(flat), 3).scatter_(1, groups, 1).repeat_interleave(2, dim=1)
        ids = biased.masked_fill(open_ == 0, -torch.inf).topk(K, dim=-1)[1]
        ids = self.choice(ids)
        self.note(ids)
        weights = scores.gather(1, ids)
        weights = weights / weights.sum(-1, keepdim=True)
        return (mixed(self.experts, flat, ids, weights) + self.shared(flat)).reshape(x.shape)


class GroupLimitedLayer(GroupLimited):
    """The same with a layer for the matrix."""

    def __init__(self):
        super().__init__()
        del self.gate_weight
        self.gate = nn.Linear(D, E, bias=False)

    def scores(self, flat):
        """Sigmoids."""
        return self.gate(flat).sigmoid()


class Choice(nn.Identity):
    """What the advice says to put in: the ids go through it."""


class Advised(GroupLimited):
    """The monolithic block after the advice was followed."""

    def __init__(self):
        super().__init__()
        self.passed = Choice()

    def choice(self, ids):
        """Through a module."""
        return self.passed(ids)


class StackedInline(Noting):
    """Experts in parameters of the block; nothing at all is called but the gate."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, E, bias=False)
        self.up = nn.Parameter(torch.randn(E, D, D) * 0.1)
        self.down = nn.Parameter(torch.randn(E, D, D) * 0.1)

    def forward(self, x):
        """Weights of the chosen are gathered per token."""
        flat = x.reshape(-1, D)
        weights, ids = self.gate(flat).softmax(-1).topk(K, -1)
        self.note(ids)
        inner = torch.einsum("td,tkdf->tkf", flat, self.up[ids]).relu()
        out = torch.einsum("tkf,tkfd->tkd", inner, self.down[ids])
        return (out * weights.unsqueeze(-1)).sum(1).reshape(x.shape)


class NestedRouter(nn.Module):
    """Its choice is a tuple in a dict."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, E)

    def forward(self, x):
        """With losses beside it."""
        logits = self.layer(x)
        weights, ids = logits.softmax(-1).topk(K, -1)
        return {"routing": (ids, weights), "logits": logits, "loss": {"z": logits.square().mean()}}


class Nested(Noting):
    """A block with that router."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = NestedRouter(), experts()

    def forward(self, x):
        """Route and mix."""
        flat = x.reshape(-1, D)
        out = self.router(flat)
        ids, weights = out["routing"]
        self.note(ids, out["logits"].softmax(-1))
        return mixed(self.experts, flat, ids, weights).reshape(x.shape)


class Numbered(Noting):
    """Experts under numbered names, and no list of them."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, E)
        for index in range(E):
            setattr(self, f"expert_{index}", expert())

    def forward(self, x):
        """Each by its name."""
        flat = x.reshape(-1, D)
        weights, ids = self.gate(flat).softmax(-1).topk(K, -1)
        self.note(ids)
        listed = [getattr(self, f"expert_{index}") for index in range(E)]
        return mixed(listed, flat, ids, weights).reshape(x.shape)


def pick(scores, k=1):
    """The highest, by a function beside the block."""
    return torch.softmax(scores, dim=-1).topk(k, -1)


class ByFunction(Noting):
    """Chooses by a function that is not its own."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(D, E), experts()

    def choose(self, flat):
        """By the function of this file."""
        return pick(self.gate(flat), k=K)

    def forward(self, x):
        """Route and mix."""
        flat = x.reshape(-1, D)
        weights, ids = self.choose(flat)
        self.note(ids)
        return mixed(self.experts, flat, ids, weights).reshape(x.shape)


class ByStaticMethod(ByFunction):
    """Chooses by a method that gets no block."""

    @staticmethod
    def select(scores, top):
        """The highest, by position."""
        return torch.topk(scores.softmax(-1), top)

    def choose(self, flat):
        """By the method."""
        return self.select(self.gate(flat), K)


class Sampled(ByFunction):
    """Draws one expert per token."""

    def choose(self, flat):
        """Straight through."""
        drawn = F.gumbel_softmax(self.gate(flat), hard=True)
        return drawn.max(-1, keepdim=True)
