"""Every routed token is counted once, in its own window and phase, and the training is unchanged.

Three copies of one model do the same work: a traced and an untraced one in the mode under test, and
one that runs plainly under the oracle. The first two have to agree bit by bit, the first and the
third count by count.
"""

import contextlib
import copy
import itertools

import pytest
import torch

import moetrace
from moetrace.sinks import MemorySink
from tests.oracle import Oracle
from tests.tiny import batch, seeded

STEPS, EVERY = 4, 2
COMPILERS = {"eager": None, "fullgraph": "aot_eager", "fullgraph-inductor": "inductor"}
CHECKPOINTING = {"plain": None, "reentrant": True, "non-reentrant": False}

CELLS = [
    *itertools.product(["eager", "fullgraph"], CHECKPOINTING, [1, 4], [False, True]),
    ("fullgraph-inductor", "plain", 4, True),
]


def train(model, forward, *, tracer, oracle, micro_batches, interleaved):
    """Four steps; interleaved, a generation in each micro-batch and an evaluation after each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, gradients = [], []
    says = oracle.says if oracle else lambda label, mask=None: contextlib.nullcontext()
    for step in range(STEPS):
        if tracer:
            tracer.on_step_begin()
        for micro in range(micro_batches):
            ids, mask = batch(10 * step + micro)
            if interleaved:
                with says("rollout"):
                    generate(model, ids[1:, :4])
            with says(("train", step // EVERY), mask):
                loss = forward(input_ids=ids, attention_mask=mask, labels=ids).loss
            loss.backward()
            losses.append(loss.detach())
        gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
        if tracer:
            tracer.on_step_end()
        if interleaved:
            model.eval()
            with torch.no_grad(), says(("eval", step), mask):
                losses.append(forward(input_ids=ids, attention_mask=mask, labels=ids).loss)
            model.train()
    weights = [parameter.detach() for parameter in model.parameters()]
    return [*losses, *gradients, *weights, torch.get_rng_state()]


def generate(model, prompt):
    """Three new tokens, greedily, as a rollout inside a step would."""
    # use_cache=False: transformers turns the cache off under checkpointing, and the oracle's copy
    # has to route the same tokens.
    model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=3,
        use_cache=False,
        do_sample=False,
    )


def made(compiler, checkpointing):
    """A fresh copy of the tiny model in the mode under test, and what to call as its forward."""
    torch._dynamo.reset()
    model = copy.deepcopy(seeded("Qwen3Moe"))
    if CHECKPOINTING[checkpointing] is not None:
        model.gradient_checkpointing_enable({"use_reentrant": CHECKPOINTING[checkpointing]})
    backend = COMPILERS[compiler]
    return model, model if backend is None else torch.compile(
        model, fullgraph=True, backend=backend
    )


def labelled(snapshots):
    """Counts per label of the oracle and per layer: the n-th train and eval window, one rollout."""
    seen = {"train": 0, "eval": 0}
    counts = {}
    for snapshot in snapshots:
        label = snapshot.phase
        if label in seen:
            label = (label, seen[label])
            seen[snapshot.phase] += 1
        for stats in snapshot:
            layers = counts.setdefault(label, {})
            layers[stats.layer] = layers.get(stats.layer, 0) + stats.tokens_per_expert
    return counts


def as_lists(counts):
    """Plain numbers, so that a failure prints readably."""
    return {
        label: {layer: list(map(int, row)) for layer, row in layers.items()}
        for label, layers in counts.items()
    }


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("compiler", "checkpointing", "micro_batches", "interleaved"), CELLS)
class TestExactlyOnce:
    def test_counts_and_bits(self, compiler, checkpointing, micro_batches, interleaved):
        """Counts equal an independent recomputation, and every bit of the training is the same."""
        work = {"micro_batches": micro_batches, "interleaved": interleaved}
        model, forward = made(compiler, checkpointing)
        sink = MemorySink()
        torch.manual_seed(0)
        with moetrace.attach(model, every=EVERY, sinks=[sink]) as tracer:
            traced = train(model, forward, tracer=tracer, oracle=None, **work)

        model, forward = made(compiler, checkpointing)
        torch.manual_seed(0)
        untraced = train(model, forward, tracer=None, oracle=None, **work)

        plain = copy.deepcopy(seeded("Qwen3Moe"))
        oracle = Oracle(plain, [(site.name, site.path) for site in tracer.sites])
        train(plain, plain, tracer=None, oracle=oracle, **work)

        assert as_lists(labelled(sink.snapshots)) == as_lists(oracle.counts)
        assert len(traced) == len(untraced)
        assert all(torch.equal(a, b) for a, b in zip(traced, untraced, strict=True))
