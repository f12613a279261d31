"""Choices that show at another place than a router's output, compiled and checkpointed every way.

Three tokens whose logits stand in their first entries, so that the choice is known by hand; two
micro-batches a step. The experts change the tokens by a thousandth: both layers choose alike.

Whole graphs are asked for wherever there can be one. An inline block whose experts are called one
by one on the rows that chose them has none: the number of rows is data, and the compiler breaks its
graph at each ``nonzero``, traced or not.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import moetrace
from moetrace.sinks import MemorySink
from tests.readers.hand_written import D, E, K, Stacked, experts, mixed

LOGITS = [
    [5.0, 4.0, 0.0, -1.0, -2.0, -3.0],
    [0.0, 1.0, 6.0, 7.0, 2.0, 3.0],
    [9.0, -1.0, -2.0, -3.0, 8.0, -4.0],
]
CHOSEN = [2, 1, 1, 1, 1, 0]
"""Of a forward: experts 0 and 1, 2 and 3, 0 and 4."""


class Called(nn.Module):
    """Top-k in the block; stacked experts that are called with ids and weights (rule B)."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = gate(), Stacked()

    def forward(self, x):
        """Nothing here looks at a value."""
        weights, ids = self.gate(x).softmax(-1).topk(K, dim=-1)
        return self.experts(x, ids, weights)


class Inline(nn.Module):
    """Top-k in the block; listed experts that are called with the rows that chose them."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = gate(), experts()

    def forward(self, x):
        """The loop of a thousand repositories."""
        weights, ids = self.gate(x).softmax(-1).topk(K, dim=-1)
        return mixed(self.experts, x, ids, weights)


def gate():
    """Logits are the first entries of a token."""
    layer = nn.Linear(D, E, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(E, D))
    return layer


class Model(nn.Module):
    """Two blocks, checkpointed or not."""

    def __init__(self, block, reentrant):
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.reentrant = reentrant

    def forward(self, x):
        """Each adds a thousandth of its output."""
        for block in self.blocks:
            out = block(x) if self.reentrant is None else self.again(block, x)
            x = x + 1e-3 * out
        return x

    def again(self, block, x):
        """Computed once more in the backward."""
        return checkpoint(block, x, use_reentrant=self.reentrant)


def train(model, how, whole, tracer=None):
    """Two steps; the losses, and the gradients of the last one."""
    torch._dynamo.reset()
    forward = model
    if how == "whole":
        forward = torch.compile(model, backend="eager", fullgraph=whole)
    elif how == "blocks":
        for block in model.blocks:
            block.compile(backend="eager", fullgraph=whole)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    hidden = torch.cat([torch.tensor(LOGITS), torch.ones(3, D - E)], 1).requires_grad_()
    losses = []
    for _ in range(2):
        if tracer is not None:
            tracer.on_step_begin()
        optimizer.zero_grad()
        for _ in range(2):
            loss = forward(hidden).square().sum()
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        if tracer is not None:
            tracer.on_step_end()
    return losses, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "reentrant", "other"])
@pytest.mark.parametrize("how", ["eager", "whole", "blocks"])
@pytest.mark.parametrize("block", [Called, Inline])
@pytest.mark.filterwarnings("ignore")  # of dynamo, about its graph breaks
def test_exactly_once_and_bit_for_bit(block, how, reentrant):
    """Counts are those known by hand, losses, gradients and weights those of an untraced twin."""
    whole = block is Called
    model = Model(block, reentrant)
    twin = copy.deepcopy(model)
    sink = MemorySink()
    with moetrace.attach(model, every=1, sinks=[sink], strict=True) as tracer:
        losses, gradients = train(model, how, whole, tracer)
    true_losses, true_gradients = train(twin, how, whole)
    assert all(map(torch.equal, losses, true_losses))
    assert [g is None for g in gradients] == [g is None for g in true_gradients]
    pairs = zip(gradients, true_gradients, strict=True)
    assert all(torch.equal(one, two) for one, two in pairs if one is not None)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
    assert [snapshot.phase for snapshot in sink.snapshots] == ["train", "train"]
    for snapshot in sink.snapshots:
        assert "withheld" not in snapshot.health
        for stats in snapshot:
            assert stats.tokens_per_expert.tolist() == [2 * count for count in CHOSEN]
            assert (stats.tokens, stats.calls, stats.top_k) == (6, 2, K)
            assert stats.scoring == "softmax"
