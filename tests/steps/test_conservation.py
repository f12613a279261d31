"""E11: every routed token lands in exactly one window, whatever is done in whatever order.

A machine of hypothesis attaches, trains, evaluates, skips, aborts, flushes, fails writes, forks,
closes, dies and resumes, on a real run folder, beside a ledger kept by hand. ``MACHINES`` and
``ACTS`` in the environment say how many runs of how many acts; with ``SHRINK=1`` a failure is
shortened, which takes minutes.
"""

import errno
import gc
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import moetrace
from tests.steps.ledger import EXPERTS, LAYERS, Ledger
from tests.store.fault_files import Faults
from tests.tiny import ScriptedModel

MACHINES, ACTS = int(os.environ.get("MACHINES", "30")), int(os.environ.get("ACTS", "25"))
PHASES = [Phase.reuse, Phase.generate, *([Phase.shrink] if os.environ.get("SHRINK") else [])]

choices = st.tuples(*[st.tuples(st.integers(-1, EXPERTS))] * 2)
batches = st.lists(choices, min_size=1, max_size=5)
"""What the two routers choose for each of a few tokens."""
errors = st.sampled_from([errno.ENOSPC, errno.EIO])


class Conservation(RuleBasedStateMachine):
    """A training that somebody disturbs, and the ledger beside it."""

    def __init__(self):
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="conservation-"))
        self.lives = 0
        self.folder = self.home / "0"
        self.ledger, self.tracer, self.failed, self.named = Ledger(), None, False, []

    @initialize(every=st.integers(1, 4), sample=st.integers(1, 2))
    def begin(self, every, sample):
        """The first life of the run."""
        self.attach(every, sample)

    @precondition(lambda self: self.tracer is None)
    @rule(every=st.integers(1, 4), sample=st.integers(1, 2))
    def attach(self, every, sample):
        """Another life of the run, in the same folder."""
        self.model = ScriptedModel([[0]], [[0]], num_experts=EXPERTS).train()
        self.tracer = moetrace.attach(
            self.model, self.folder, every=every, sample=sample, alerts=None
        )
        self.ledger.attach(every, sample)

    @precondition(lambda self: self.tracer is not None)
    @rule(batch=batches, training=st.booleans(), grad=st.booleans())
    def forward(self, batch, training, grad):
        """A forward, in train or eval mode, with gradients or without."""
        self.model.train(training)
        with torch.set_grad_enabled(grad):
            self._run(batch)
        chosen = dict(zip(LAYERS, zip(*batch, strict=True), strict=True))
        self._note(chosen, training=training, grad=grad)

    @precondition(lambda self: self.tracer is not None)
    @rule(batch=batches)
    def fail_in_the_middle(self, batch):
        """A forward that runs out of memory between the first router and the second."""
        self.model.train()

        def raising(module, args):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        handle = self.model.blocks[1].register_forward_pre_hook(raising)
        try:
            self._run(batch)
        except torch.OutOfMemoryError:
            self._note({LAYERS[0]: [first for first, _ in batch]}, training=True, grad=True)
        finally:
            handle.remove()

    @precondition(lambda self: self.tracer is not None)
    @rule(back=st.none() | st.integers(0, 3))
    def on_step_begin(self, back):
        """A step begins, perhaps under a number of the trainer's, perhaps a smaller one."""
        step = None if back is None else max(1, self.ledger.step + 1 - back)
        self.tracer.on_step_begin(step)
        self.ledger.begin(step)

    @precondition(lambda self: self.tracer is not None)
    @rule(skipped=st.booleans())
    def on_step_end(self, skipped):
        """A step ends, perhaps without a change of any weight."""
        self.tracer.on_step_end(skipped=skipped)
        self.ledger.end(skipped=skipped)

    @precondition(lambda self: self.tracer is not None and len(self.named) < 2)
    @rule(name=st.sampled_from(["probe", "rollout"]))
    def enter(self, name):
        """A phase of the user's begins."""
        phase = self.tracer.phase(name)
        phase.__enter__()
        self.named.append(phase)
        self.ledger.enter(name)

    @precondition(lambda self: self.named)
    @rule()
    def leave(self):
        """It ends."""
        self.named.pop().__exit__(None, None, None)
        self.ledger.leave()

    @precondition(lambda self: self.tracer is not None)
    @rule()
    def flush(self):
        """The user looks at what is there."""
        self.tracer.flush()
        self.ledger.flush()

    @precondition(lambda self: self.tracer is not None)
    @rule(error=errors, first=st.integers(1, 6), lasting=st.integers(1, 40))
    def flush_to_a_bad_disk(self, error, first, lasting):
        """The disk fails in the middle of it, for a while."""
        faults = Faults(error, first, lasting, operations=("write", "pwrite", "open_append"))
        with faults.injected():
            self.tracer.flush()
        self.failed |= bool(faults.fired)
        self.ledger.flush()

    @precondition(lambda self: self.tracer is not None)
    @rule(batch=batches)
    def fork(self, batch):
        """A child goes on with the model and the tracer; nothing of that is in the run."""
        child = os.fork()
        if child == 0:
            self._run(batch)
            self.tracer.on_step_end()
            self.tracer.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    @precondition(lambda self: self.tracer is not None)
    @rule()
    def close(self):
        """The process ends in order, or the tracer is taken off."""
        while self.named:
            self.leave()
        self.tracer.close()
        self.ledger.close()
        self.tracer = None

    @precondition(lambda self: self.tracer is not None and not self.failed)
    @rule()
    def kill(self):
        """The process dies: the next life finds the folder as it is at this moment."""
        self.tracer._recording.writer.drain(time.monotonic() + 10.0)
        self.lives += 1
        left = self.home / str(self.lives)
        shutil.copytree(self.folder, left)
        self.ledger.kill()
        while self.named:  # of the body that is left behind
            self.named.pop().__exit__(None, None, None)
        self.tracer.close()
        self.folder, self.tracer = left, None
        self.ledger.phases = []

    @invariant()
    def nothing_is_lost_or_invented(self):
        """Whenever all is written, what the run holds is what the ledger says."""
        if self.tracer is None and self.ledger.attempt >= 0:
            self._compare()

    def teardown(self):
        """The run ends, and is held against the ledger once more."""
        if self.tracer is not None:
            self.close()
        self._compare()
        shutil.rmtree(self.home)
        gc.collect()

    def _compare(self):
        run = moetrace.open_run(self.folder)
        phases = {entry.phase for entry in run._index.entries}  # those of superseded windows too
        found = {phase: run.snapshots(phase=phase, superseded=True) for phase in phases}
        summed = {phase: _summed(windows) for phase, windows in found.items()}
        assert {phase: rows for phase, rows in summed.items() if any(map(any, rows.values()))} == (
            self.ledger.summed()
        )
        everything = _total(
            [*self.ledger.summed().values(), self.ledger.left_out, self.ledger.lost]
        )
        assert everything == self.ledger.routed
        if not self.failed:
            windows = [s for phase in phases for s in found[phase]]
            assert sorted(map(_plain, windows)) == sorted(map(_entry, self.ledger.written))
            current = [s for phase in phases for s in run.snapshots(phase=phase)]
            assert sorted(map(_plain, current)) == sorted(map(_entry, self.ledger.current()))
            assert run.faults == ()

    def _run(self, batch):
        for block, script in zip(self.model.blocks, zip(*batch, strict=True), strict=True):
            block.gate.script, block.gate.top_k = script, 1
        self.model(torch.ones(len(batch), 4))

    def _note(self, chosen, *, training, grad):
        flat = {layer: [expert for row in rows for expert in row] for layer, rows in chosen.items()}
        self.ledger.forward(flat, training=training, grad=grad)


def _counts(stats):
    return [*stats.tokens_per_expert.tolist(), stats.out_of_range]


def _summed(windows):
    return _total([{stats.layer: _counts(stats) for stats in window} for window in windows])


def _total(rows):
    return {
        layer: [sum(column) for column in zip(*(row[layer] for row in rows), strict=True)]
        or [0] * (EXPERTS + 1)
        for layer in LAYERS
    }


def _plain(snapshot):
    rows = [_counts(snapshot[layer]) for layer in LAYERS]
    return snapshot.attempt, snapshot.phase, snapshot.first_step, snapshot.last_step, rows


def _entry(window):
    rows = [window.counts[layer] for layer in LAYERS]
    return window.attempt, window.phase, window.first, window.last, rows


def test_conservation():
    """E11: over all windows, attempts and phases every token that was routed is there once."""
    logger = logging.getLogger("moetrace")
    logger.addFilter(_quiet)
    try:
        run_state_machine_as_test(
            Conservation,
            settings=settings(
                max_examples=MACHINES,
                stateful_step_count=ACTS,
                deadline=None,
                phases=PHASES,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        logger.removeFilter(_quiet)


def _quiet(record):
    return False
