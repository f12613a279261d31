"""The training that the programs run: a scripted model whose counts a reader checks by hand."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moetrace import Tracer, attach, open_run
from tests.tiny import ScriptedModel

STEP = [2, 1, 1, 0]
"""Tokens per expert of one step."""


def model() -> ScriptedModel:
    """One router of four experts; a forward sends two tokens to experts 0, 1 and 0, 2."""
    return ScriptedModel([[0, 1], [0, 2]], num_experts=4)


def train(tracer: Tracer, traced: Any, steps: int, after: Callable[[], object] = int) -> None:
    """Take steps; after each one do something."""
    for _ in range(steps):
        tracer.on_step_begin()
        traced(torch.zeros(2, 4)).sum().backward()
        tracer.on_step_end()
        after()


def attach_and_train(folder: str, steps: int, every: int = 1) -> None:
    """What a child does that trains for itself, and forgets to close its tracer."""
    traced = model()
    tracer = attach(traced, folder, every=every, alerts=None)
    kept.append((traced, tracer))
    train(tracer, traced, steps)


kept: list[Any] = []
"""Keeps tracers alive until the interpreter ends."""


def say(word: str) -> None:
    """Print a line that another process waits for.

    Past every buffer: its reader may send a signal before this returns, whose handler says more.
    """
    os.write(1, f"{word}\n".encode())


def steps_in(folder: Path | str) -> int:
    """Steps that a run holds, read off its counts: all of them whole, none twice."""
    counts = sum(s.routing[0].tokens_per_expert for s in open_run(folder).snapshots())
    (steps,) = {int(c) // s for c, s in zip(counts, STEP, strict=True) if s}  # type: ignore[arg-type]
    assert counts.tolist() == [steps * s for s in STEP]  # type: ignore[union-attr]
    return steps
