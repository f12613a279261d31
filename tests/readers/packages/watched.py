"""One traced forward of a package's block, and what its experts got in that same forward."""

import math
from dataclasses import dataclass

import torch
from torch import nn

import moetrace
from moetrace.sinks import MemorySink

D, E, T = 32, 8, 24
"""Width, experts and tokens of every block here."""


class Model(nn.Module):
    """A user's model: two layers, each with a block under the name ``moe``."""

    def __init__(self, block, *more):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"moe": item}) for item in (block, *more))

    def forward(self, hidden):
        """The blocks one after the other, around each a residual; tuples give their first."""
        for layer in self.layers:
            output = layer["moe"](hidden)
            hidden = hidden + (output if isinstance(output, torch.Tensor) else output[0])
        return hidden


@dataclass(frozen=True, slots=True)
class Watched:
    """What moetrace says and what the watch saw, of one forward.

    Attributes:
        layers: The statistics by site.
        sites: What attach took.
        seen: What the watch kept, by path.
    """

    layers: dict
    sites: tuple
    seen: dict


def watch(model, hidden, *, keep, training=True):
    """Trace one forward with no argument to attach.

    Args:
        model: The model.
        hidden: Its input.
        keep: Of each path in it, a function of the arguments of that module: what is kept of them.
        training: Whether it is a step of a training, or an evaluation.
    """
    model.train(training)
    seen = {}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(_keeping(seen, path, function))
        for path, function in keep.items()
    ]
    sink = MemorySink()
    with moetrace.attach(model, every=1, sinks=[sink]) as tracer, torch.set_grad_enabled(training):
        tracer.on_step_begin()
        model(hidden)
        tracer.on_step_end()
    for hook in hooks:
        hook.remove()
    (snapshot,) = [s for s in sink.snapshots if s.phase == ("train" if training else "eval")]
    return Watched({stats.layer: stats for stats in snapshot}, tracer.sites, seen)


def rows_of_a_stack(hidden):
    """Rows that are not all zero, of experts stacked first: ``(E, ..., D)``."""
    return (hidden.abs().sum(-1) != 0).flatten(1).sum(1).tolist()


def entropy(logits, score=torch.softmax):
    """Mean entropy of the tokens in nats, in float64."""
    scores = score(logits.double(), -1) if score is torch.softmax else score(logits.double())
    probs = (scores / scores.sum(-1, keepdim=True)).reshape(-1, logits.shape[-1])
    return math.fsum(torch.special.entr(probs).sum(-1).tolist()) / len(probs)


def _keeping(seen, path, function):
    def hook(module, args):
        seen.setdefault(path, []).append(
            function(*(a.detach().clone() for a in args if a is not None))
        )

    return hook
