"""A short training of hand-written blocks under `attach`, and what it counted."""

import torch

import moetrace
from moetrace.sinks import MemorySink
from tests.readers.hand_written import D


def traced(model, *, forward=None, steps=2, readers=None, width=D, evaluate=False):
    """The windows of a few steps, one per step."""
    sink = MemorySink()
    with moetrace.attach(model, every=1, sinks=[sink], readers=readers, strict=True) as tracer:
        for _ in range(steps):
            tracer.on_step_begin()
            (forward or model)(torch.randn(2, 5, width)).square().sum().backward()
            tracer.on_step_end()
        if evaluate:
            model.eval()
            model(torch.randn(2, 5, width))
    return sink.snapshots


def counts(snapshots, layer):
    """Counts per expert of a layer over all windows."""
    return sum(snapshot[layer].tokens_per_expert for snapshot in snapshots).tolist()


def entropy(snapshots, layer):
    """Mean entropy of a layer over windows of the same number of tokens."""
    means = [snapshot[layer].mean("entropy_sum") for snapshot in snapshots]
    return sum(means) / len(means)
