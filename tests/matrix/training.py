"""The loop that every cell runs, and the truth that its counts are held to."""

import contextlib
import copy
import functools
import itertools
import math
from dataclasses import dataclass

import torch

from tests.matrix.modes import cut
from tests.oracle import Oracle
from tests.tiny import batch, seeded

EVERY = 2


@dataclass(frozen=True, slots=True)
class Work:
    """What one step holds: micro-batches, and what runs in between; and how many steps."""

    micro_batches: int
    evaluation: bool
    generation: bool
    steps: int = 2

    def __str__(self):
        between = [name for name in ("evaluation", "generation") if getattr(self, name)]
        return f"{self.micro_batches}-{'-'.join(between) or 'nothing'}"


WORK = tuple(
    Work(micro_batches, evaluation=evaluation, generation=not evaluation)
    for micro_batches, evaluation in itertools.product([1, 4], [True, False])
)
"""What every cell runs, one after the other on the same compiled model."""

LONGER_WORK = (
    *WORK,
    *(
        Work(micro_batches, evaluation=both, generation=both, steps=4)
        for micro_batches, both in itertools.product([1, 4], [False, True])
    ),
)
"""Besides, nothing and everything in between, over two windows."""


def train(model, forward, work, *, new_tokens=0, first_batch=0, tracer=None, oracle=None):
    """Run the steps; every tensor of the training, by name."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(0)
    left = {}
    says = oracle.says if oracle else lambda label, mask=None: contextlib.nullcontext()
    for step in range(work.steps):
        if tracer:
            tracer.on_step_begin()
        for micro in range(work.micro_batches):
            ids, mask = batch(first_batch + 10 * step + micro)
            if work.generation:
                with says("rollout"):
                    generate(model, ids, new_tokens)
            with says(("train", step // EVERY), mask):
                loss = forward(input_ids=ids, attention_mask=mask, labels=ids).loss
            loss.backward()
            left[f"loss {step} {micro}"] = loss.detach()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                left[f"gradient {step} {name}"] = local(parameter.grad).clone()
        if tracer:
            tracer.on_gradients()
        optimizer.step()
        optimizer.zero_grad()
        if tracer:
            tracer.on_step_end()
        if work.evaluation:
            model.eval()
            with torch.no_grad(), says(("eval", step), mask):
                loss = forward(input_ids=ids, attention_mask=mask, labels=ids).loss
            left[f"eval loss {step}"] = loss
            model.train()
    for name, parameter in model.named_parameters():
        left[f"weight {name}"] = local(parameter.detach()).clone()
    left["random state"] = torch.get_rng_state()
    return left


def norms_by_hand(left, *, steps):
    """Norm of all gradients that `train` left, per window: the root mean square of its steps."""
    squares = [
        math.fsum(
            tensor.double().square().sum().item()
            for name, tensor in left.items()
            if name.startswith(f"gradient {step} ")
        )
        for step in range(steps)
    ]
    windows = [squares[first : first + EVERY] for first in range(0, steps, EVERY)]
    return [math.sqrt(math.fsum(window) / len(window)) for window in windows]


def local(tensor):
    """What this rank holds of a tensor that FSDP has sharded; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def generate(model, prompt, new_tokens):
    """Some new tokens, greedily, as a rollout inside a step would."""
    # use_cache=False: transformers turns the cache off under checkpointing, and the oracle's copy
    # has to route the same tokens.
    model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        use_cache=False,
        do_sample=False,
    )


@functools.cache
def truth(family, layers, work, new_tokens):
    """Counts per label and layer, found by the oracle in a plain run."""
    model = cut(copy.deepcopy(seeded(family)), layers)
    names = [f"model.layers.{n}.mlp" for n in range(len(model.model.layers))]
    oracle = Oracle(model, [(name, f"{name}.gate") for name in names])
    train(model, model, work, new_tokens=new_tokens, oracle=oracle)
    return as_lists(oracle.counts)


def labelled(snapshots):
    """Counts per label of the oracle and per layer: the n-th train and eval window, one rollout."""
    seen = {"train": 0, "eval": 0}
    counts = {}
    for snapshot in snapshots:
        label = snapshot.phase
        if label in seen:
            label = (label, seen[label])
            seen[snapshot.phase] += 1
        for n, stats in enumerate(snapshot):
            layers = counts.setdefault(label, {})
            layer = f"model.layers.{n}.mlp"
            layers[layer] = layers.get(layer, 0) + stats.tokens_per_expert
    return as_lists(counts)


def as_lists(counts):
    """Plain numbers, so that a failure prints readably."""
    return {
        label: {layer: list(map(int, row)) for layer, row in layers.items()}
        for label, layers in counts.items()
    }
