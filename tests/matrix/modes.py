"""One small transformers model in every way of compiling and checkpointing it.

The wirings are those that users meet: transformers puts its checkpoint inside the layer's forward,
so ``layer.compile()`` compiles it along; torchtitan wraps a layer and compiles it in either order.
A checkpoint of the selective kind spans all decoder layers, so that two routers share one region.
"""

import copy
import functools
import os
from dataclasses import dataclass
from unittest import mock

import torch
import torch._dynamo.testing
from torch import nn
from torch.distributed.algorithms._checkpoint import (  # noqa: TID251 - it talks to no rank
    checkpoint_wrapper as wrapping,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

import moetrace
from tests.tiny import seeded

COMPILED = (
    "eager",
    "whole",
    "in-place",
    "per-block",
    "compile(checkpoint(block))",
    "checkpoint(compile(block))",
)
CHECKPOINTED = ("none", "reentrant", "non-reentrant", "selective")
FAMILIES = ("Qwen3Moe", "Olmoe", "Mixtral")

WHOLE = bool(os.environ.get("MOETRACE_WHOLE_MATRIX"))
"""Set by ``make chaos``: every family has two layers and does all kinds of work; twice the time."""


@dataclass(frozen=True, slots=True)
class Mode:
    """How one cell of the matrix runs its model."""

    family: str
    compiled: str
    checkpointed: str
    backend: str = "aot_eager"

    @property
    def layers(self):
        """Decoder layers. Compiling a whole model takes the longest: the first family has two."""
        whole = self.compiled in ("whole", "in-place") and self.checkpointed != "selective"
        return 1 if whole and self.family != FAMILIES[0] and not WHOLE else 2

    def __str__(self):
        name = f"{self.family}-{self.compiled}-{self.checkpointed}"
        return name if self.backend == "aot_eager" else f"{name}-{self.backend}"


class Region(GradientCheckpointingLayer):
    """Decoder layers as one block."""

    def __init__(self, layers):
        super().__init__()
        self.inner = layers

    def forward(self, hidden, **options):
        """One after the other."""
        for layer in self.inner:
            hidden = layer(hidden, **options)
        return hidden


def made(mode):
    """A fresh copy of the tiny model in that mode, what to call as its forward, and the counter."""
    must_save()  # here and not in the middle of a training: it draws random numbers
    model = cut(copy.deepcopy(seeded(mode.family)), mode.layers)
    counter = torch._dynamo.testing.CompileCounterWithBackend(mode.backend)
    compiling = functools.partial(torch.compile, fullgraph=True, backend=counter)
    layers = model.model.layers
    if mode.checkpointed == "selective":
        layers = model.model.layers = nn.ModuleList([Region(layers)])
    if mode.compiled == "compile(checkpoint(block))":
        blocks = [compiling(wrapped(mode, layer)) for layer in layers]
        model.model.layers = nn.ModuleList(blocks)
    elif mode.compiled == "checkpoint(compile(block))":
        blocks = [wrapped(mode, compiling(layer)) for layer in layers]
        model.model.layers = nn.ModuleList(blocks)
    elif mode.checkpointed != "none":
        model.gradient_checkpointing_enable(options(mode))
        for layer in layers:
            for inner in list(layer.modules())[1:]:
                inner.gradient_checkpointing = False
    if mode.compiled == "per-block":
        for layer in layers:
            layer.compile(fullgraph=True, backend=counter)
    if mode.compiled == "in-place":
        model.compile(fullgraph=True, backend=counter)
    return model, compiling(model) if mode.compiled == "whole" else model, counter


def cut(model, layers):
    """The model with that many of its decoder layers."""
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    return model


def options(mode):
    """What ``torch.utils.checkpoint`` is told."""
    if mode.checkpointed != "selective":
        return {"use_reentrant": mode.checkpointed == "reentrant"}
    context = functools.partial(create_selective_checkpoint_contexts, saved)
    return {"use_reentrant": False, "context_fn": context}


def wrapped(mode, block):
    """The block in torch's own checkpoint wrapper, as torchtitan does it."""
    if mode.checkpointed == "none":
        return block
    if mode.checkpointed == "reentrant":
        return wrapping.checkpoint_wrapper(block, checkpoint_impl=wrapping.CheckpointImpl.REENTRANT)
    chosen = (
        {} if mode.checkpointed == "non-reentrant" else {"context_fn": options(mode)["context_fn"]}
    )
    return wrapping.checkpoint_wrapper(
        block, checkpoint_impl=wrapping.CheckpointImpl.NO_REENTRANT, **chosen
    )


def saved(context, operator, *args, **kwargs):
    """Keep every matrix product and all that counting runs on; recompute the rest."""
    keep = operator in must_save()
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def must_save():
    """The matrix product and each functional operator that counting one forward runs."""
    model = copy.deepcopy(seeded("Qwen3Moe"))
    with moetrace.attach(model) as tracer:
        router = model.get_submodule(tracer.sites[0].path)
        probe = next(iter(router._forward_hooks.values()))
        hidden = torch.randn(6, model.config.hidden_size)
        output = router(hidden)
        # With a dispatch mode active the probe would show one operator; here its body is wanted.
        inline = mock.patch("moetrace.probes.routing.dispatch_modes", return_value=0)
        with tracer.tokens(mask=torch.ones(6)), inline, _Watching() as watching:
            probe(router, (hidden,), {}, output)
    kept = watching.seen - watching.of_bools
    functional = {operator for operator in kept if not operator._schema.is_mutable}
    return frozenset(functional | {torch.ops.aten.mm.default})


class _Watching(TorchDispatchMode):
    """Notes operators; PyTorch itself cannot keep a bool under selective checkpointing."""

    def __init__(self):
        super().__init__()
        self.seen, self.of_bools = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        bools = isinstance(output, torch.Tensor) and output.dtype is torch.bool
        (self.of_bools if bools else self.seen).add(function)
        return output
