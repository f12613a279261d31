"""One cell of the matrix: traced, untraced and the truth, reduced to what a test compares."""

import copy
import gc
import logging
import warnings
from dataclasses import dataclass, field

import torch
import torch._dynamo.testing

import moetrace
from moetrace.gradient_stats import norm_of
from moetrace.sinks import MemorySink
from tests.matrix.modes import made
from tests.matrix.training import EVERY, labelled, norms_by_hand, train, truth

PROBES = (moetrace.GradientProbe(), moetrace.WeightProbe())
"""Every probe beside routing: no bit may differ with them either."""


@dataclass(slots=True)
class Outcome:
    """What one cell did.

    Attributes:
        counted: What the tracer counted, per kind of work.
        truth: The same from the oracle.
        differing: Names of the tensors that are not the same bit for bit.
        compared: How many tensors were compared.
        norms: Norm of the gradients per training window, as recorded.
        norms_by_hand: The same from the gradients themselves.
        frames: Compiled frames, untraced and traced.
        breaks: Graph breaks, untraced and traced.
        untraced_error, traced_error: First line of what a run raised, or empty.
    """

    counted: dict = field(default_factory=dict)
    truth: dict = field(default_factory=dict)
    differing: list = field(default_factory=list)
    compared: int = 0
    norms: list = field(default_factory=list)
    norms_by_hand: list = field(default_factory=list)
    frames: tuple = (0, 0)
    breaks: tuple = (0, 0)
    untraced_error: str = ""
    traced_error: str = ""


def run(mode, works):
    """Run the cell: every kind of work one after the other on one instance, untraced and traced."""
    outcome = Outcome()
    untraced, frames, breaks, outcome.untraced_error = _run(mode, works, None)
    traced, more_frames, more_breaks, outcome.traced_error = _run(mode, works, outcome)
    outcome.frames, outcome.breaks = (frames, more_frames), (breaks, more_breaks)
    if not outcome.untraced_error and not outcome.traced_error:
        outcome.truth = {
            str(work): truth(mode.family, mode.layers, work, new_tokens(mode)) for work in works
        }
        assert list(traced) == list(untraced)
        outcome.compared = len(traced)
        outcome.differing = [
            name for name in traced if not torch.equal(traced[name], untraced[name])
        ]
    return outcome


def _run(mode, works, outcome):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, forward, counter = made(mode)
    start = copy.deepcopy(model.state_dict())
    sink = MemorySink()
    tracer = (
        None
        if outcome is None
        else moetrace.attach(model, every=EVERY, sinks=[sink], probes=PROBES, strict=True)
    )
    left, ends, error = {}, [], ""
    try:
        for work in works:
            model.load_state_dict(start)
            done = train(model, forward, work, new_tokens=new_tokens(mode), tracer=tracer)
            left |= {f"{work}: {name}": value for name, value in done.items()}
            if tracer:
                ends.append(tracer.flush().seq)
                outcome.norms_by_hand += norms_by_hand(done, steps=work.steps)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}".strip().splitlines()[0]
    finally:
        if tracer:
            tracer.close()
    for work, first, last in zip(works, [-1, *ends], ends, strict=False):
        outcome.counted[str(work)] = labelled(s for s in sink.snapshots if first < s.seq <= last)
    if outcome is not None:
        outcome.norms = [norm_of(s.gradients) for s in sink.snapshots if s.gradients]
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return left, counter.frame_count, breaks, error


def new_tokens(mode):
    """How many tokens a rollout makes: of one, nothing is compiled for further lengths."""
    return 2 if mode.compiled in ("eager", "whole") else 1


def prepare():
    """Make a worker process as quiet and as narrow as the tests are."""
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    logging.getLogger("moetrace").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    gc.set_threshold(200_000, 50, 100)  # a tenth of all time goes into looking through the compiler
