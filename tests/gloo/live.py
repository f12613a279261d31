"""What the ranks do, mostly adding their windows live: one cell after the other, in one process.

Every rank routes by a script, so that a test knows what they count together.
"""

import datetime
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist  # noqa: TID251 - the user's training talks to the other ranks

import moetrace
import moetrace.reduction.group as group
from moetrace.sinks import MemorySink
from tests import tripwire
from tests.tiny import ScriptedModel

WORLD = 3
SCRIPTS = ([[0, 1], [0, 2]], [[3, 1]], [[2, 3], [2, 1], [0, 1]])
"""What one forward of each rank chooses: 2, 1 and 3 tokens, of four experts."""

ONE_FORWARD = ([2, 1, 1, 0], [0, 1, 0, 1], [1, 2, 2, 1])
"""The same as counts."""


class Said(logging.Handler):
    """Keeps what a user would see."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        """Keep the line."""
        self.lines.append(record.getMessage())


class Loop:
    """A tracer on a scripted model, stepped by hand."""

    def __init__(self, rank, run, *, blocks=1, experts=4, **options):
        self.model = ScriptedModel(*[SCRIPTS[rank]] * blocks, num_experts=experts).train()
        self.sink, self.said = MemorySink(), Said()
        logging.getLogger("moetrace").addHandler(self.said)
        options = {"every": 2, "reduce": "live", **options}
        self.tracer = moetrace.attach(self.model, run, sinks=[self.sink], alerts=None, **options)

    def steps(self, count, *, first=None):
        """Take steps of one forward."""
        for number in range(count):
            self.tracer.on_step_begin(None if first is None else first + number)
            self.model(torch.ones(len(self.model.blocks[0].gate.script), 4))
            self.tracer.on_step_end()

    def settle(self, windows):
        """Wait until the sink has so many windows; the reduction is in the background."""
        deadline = time.monotonic() + 60
        while len(self.sink.snapshots) < windows and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self):
        """Close, and say what the sink got and what was warned of."""
        self.tracer.close()
        logging.getLogger("moetrace").removeHandler(self.said)
        return {
            "windows": [
                {
                    "phase": found.phase,
                    "steps": [found.first_step, found.last_step],
                    "ranks": found.health["ranks"],
                    "layers": {item.layer: item.tokens_per_expert.tolist() for item in found},
                    "tokens": [item.tokens for item in found],
                }
                for found in self.sink.snapshots
            ],
            "said": [line for line in self.said.lines if "live numbers" in line],
        }


def whole(rank, run):
    """L2: all ranks, all windows, the last one shorter; an evaluation in between."""
    loop = Loop(rank, run)
    loop.steps(4)
    loop.model.eval()(torch.ones(len(SCRIPTS[rank]), 4))
    loop.model.train()
    loop.steps(3)
    return loop.close()


def stages(rank, run):
    """L3: each rank holds other layers, and the last one none."""
    if rank == 2:
        model = torch.nn.Linear(4, 4)
        sink = MemorySink()
        tracer = moetrace.attach(
            model, run, every=2, sinks=[sink], reduce="live", topology=moetrace.Topology({"pp": 2})
        )
        for _ in range(2):
            tracer.on_step_begin()
            model(torch.ones(2, 4))
            tracer.on_step_end()
        tracer.close()
        return {"windows": sink.snapshots, "said": []}
    loop = Loop(rank, run, blocks=1 + rank, layers=f"blocks.{rank}")
    loop.steps(2)
    return loop.close()


def copies(rank, run):
    """F10 live: ranks 0 and 1 route the same tokens, rank 2 others."""
    place = moetrace.Topology({"dp": rank // 2, "tp": rank % 2}, replicated=("tp",))
    loop = Loop(rank, run, topology=place)
    loop.steps(2)
    return loop.close()


def other_cadence(rank, run):
    """L3: one rank closes its windows at other steps."""
    loop = Loop(rank, run, every=3 if rank == 1 else 2)
    loop.steps(6)
    return loop.close()


def other_experts(rank, run):
    """L3: one rank has another number of experts."""
    loop = Loop(rank, run, experts=5 if rank == 1 else 4)
    loop.steps(2)
    return loop.close()


def one_without(rank, run):
    """L4: one rank attaches without asking for it."""
    loop = Loop(rank, run, reduce="read" if rank == 1 else "live")
    loop.steps(2)
    return loop.close() if rank != 1 else loop.tracer.close()


def coalesced(rank, run):
    """L6: the writer of one rank is behind, and its windows of steps 1 to 6 become one."""
    loop = Loop(rank, run)
    if rank == 1:
        behind = loop.tracer._recording.writer.behind
        loop.tracer._recording.writer.behind = lambda: True
    loop.steps(5)
    if rank == 1:
        loop.tracer._recording.writer.behind = behind
    loop.steps(3)
    return loop.close()


def other_steps(rank, run):
    """L6: one rank numbers its steps from 101."""
    loop = Loop(rank, run)
    loop.steps(4, first=101 if rank == 1 else None)
    return loop.close()


def flushed(rank, run):
    """L6: one rank flushes whenever it likes."""
    loop = Loop(rank, run)
    for _ in range(4):
        loop.steps(1)
        if rank == 2:
            loop.tracer.flush()
    return loop.close()


def pending(rank, run):
    """L8: two ranks wait for the third in a round, and close without it."""
    loop = Loop(rank, run)
    loop.steps(2)
    loop.settle(1)
    if rank != 1:
        loop.steps(2)
        found = loop.close()
    dist.barrier()
    return loop.close() if rank == 1 else found


def forked(rank, run):
    """L9: a child of a process with a live reduction ends at once, and its parent goes on."""
    loop = Loop(rank, run)
    loop.steps(2)
    loop.settle(1)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            loop.steps(2)
            loop.tracer.close()
        finally:
            sys.stdout = sys.stderr = None
            sys.exit(7)
    _, status = os.waitpid(child, 0)
    loop.steps(2)
    found = loop.close()
    return {**found, "child": os.waitstatus_to_exitcode(status), "took": time.monotonic() - began}


def regrouped(rank, run):
    """L10: the user destroys the default group in the middle and makes another one."""
    loop = Loop(rank, run)
    loop.steps(2)
    loop.settle(1)
    dist.destroy_process_group()
    join(rank, WORLD, f"{run}.second")
    loop.steps(2)
    return loop.close()


def cadence(rank, run):
    """F2: without the opt-in each rank closes its windows when it likes; one skips a flush."""
    loop = Loop(rank, run, reduce="read", every=rank + 1)
    for step in range(6):
        loop.steps(1)
        if rank != 1 or step != 2:
            loop.tracer.flush()
    loop.tracer.close()
    return {}


CELLS = (
    cadence,
    whole,
    stages,
    copies,
    other_cadence,
    other_experts,
    one_without,
    coalesced,
    other_steps,
    flushed,
    pending,
    regrouped,
    forked,
)


def main(rank, folder):
    """Run every cell and leave what it did in a file of this rank."""
    prepare(rank, WORLD, folder)
    done = {}
    for cell in CELLS:
        dist.barrier()
        with tripwire.reduction_allowed() as passed:
            done[cell.__name__] = cell(rank, f"{folder}/{cell.__name__}")
            done[cell.__name__] = {**(done[cell.__name__] or {}), "passed": len(passed)}
    dist.barrier()
    done["stepped on"] = list(tripwire.steps_on_it)
    leave(done, rank, folder)


def lost(rank, folder, name, patience):
    """L5: the last of the ranks is killed or stopped after step 4; the others go on to step 8."""
    prepare(rank, WORLD, folder)
    group.ROUND_TIMEOUT = patience
    dist.barrier()
    with tripwire.reduction_allowed():
        loop = Loop(rank, f"{folder}/run")
        loop.steps(4)
        loop.settle(2)
        dist.barrier()
        if rank == WORLD - 1:
            loop.tracer.flush()
            os.kill(os.getpid(), getattr(signal, name))
        loop.steps(4)
        loop.settle(4)
        found = loop.close()
    leave({**found, "stepped on": list(tripwire.steps_on_it)}, rank, folder)


def life(rank, world, folder, first, last, ends):
    """F7: one life of a run with so many ranks: these steps, then closed or killed."""
    prepare(rank, world, folder)
    model = ScriptedModel([[rank % 4]], num_experts=4).train()
    tracer = moetrace.attach(model, f"{Path(folder).parent}/run", every=1, alerts=None)
    for step in range(first, last + 1):
        tracer.on_step_begin(step)
        model(torch.ones(1, 4))
        dist.barrier()
        tracer.on_step_end(step)
    tracer.flush()
    dist.barrier()
    if not ends:
        os.kill(os.getpid(), signal.SIGKILL)
    tracer.close()


def prepare(rank, world, folder):
    """What every process does first."""
    torch.set_num_threads(1)
    tripwire.lay()
    join(rank, world, f"{folder}/store")


def join(rank, world, store):
    """The default process group, over a file."""
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=limit
    )


def leave(done, rank, folder):
    """Leave what this rank did, all at once."""
    path = Path(folder, f"rank-{rank}.json")
    path.with_suffix(".new").write_text(json.dumps(done))
    path.with_suffix(".new").rename(path)
