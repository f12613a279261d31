"""What one of the two ranks does: every cell, untraced and traced, one after the other."""

import copy
import datetime
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch._dynamo.testing
import torch.distributed as dist  # noqa: TID251 - the user's training talks to the other rank
from torch.distributed.device_mesh import init_device_mesh  # noqa: TID251
from torch.distributed.fsdp import fully_shard  # noqa: TID251
from torch.nn.parallel import DistributedDataParallel

import moetrace
from moetrace.sinks import MemorySink
from tests import tripwire
from tests.matrix import cell
from tests.matrix.training import EVERY, Work, labelled, train
from tests.tiny import seeded

WORLD = 2
WORK = Work(2, evaluation=True, generation=False)
FAMILY = "Qwen3Moe"
APART = 1000
"""How far apart the batches of two ranks are seeded."""


@dataclass(frozen=True, slots=True)
class Parallel:
    """How one cell spreads its model over the ranks."""

    kind: str
    compiled: str
    checkpointed: str

    def __str__(self):
        return f"{self.kind}-{self.compiled}-{self.checkpointed}"


CELLS = tuple(
    Parallel(*choice)
    for choice in (
        *itertools.product(["DDP"], ["eager", "outside", "inside"], ["none", "non-reentrant"]),
        *itertools.product(["FSDP2"], ["eager", "per-block"], ["none", "non-reentrant"]),
        ("DDP", "eager", "reentrant"),
        ("FSDP2", "eager", "reentrant"),
    )
)


def main(rank, folder):
    """Run every cell and leave what it did in a file of this rank."""
    cell.prepare()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    tripwire.lay()
    done = {str(parallel): run(parallel, rank, folder) for parallel in CELLS}
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(done))
    dist.destroy_process_group()


def run(parallel, rank, folder):
    """One cell: counts per window and layer, what differs from untraced, and the frames."""
    outcome = cell.Outcome()
    untraced, frames, breaks, outcome.untraced_error = _run(parallel, rank, None, None)
    traced, more_frames, more_breaks, outcome.traced_error = _run(
        parallel, rank, outcome.counted, Path(folder, str(parallel))
    )
    outcome.frames, outcome.breaks = (frames, more_frames), (breaks, more_breaks)
    outcome.compared = len(traced)
    outcome.differing = [
        name
        for name in untraced
        if name not in traced or not torch.equal(traced[name], untraced[name])
    ]
    found = asdict(outcome)
    found["counted"] = [[list(label), layers] for label, layers in outcome.counted.items()]
    found["collectives"] = list(tripwire.steps_on_it)
    return found


def _run(parallel, rank, counted, folder):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, forward, counter = spread(parallel)
    sink = MemorySink()
    tracer = None
    if counted is not None:
        tracer = moetrace.attach(
            model, folder, every=EVERY, sinks=[sink], probes=cell.PROBES, strict=True
        )
    left, error = {}, ""
    try:
        left = train(model, forward, WORK, first_batch=APART * rank, tracer=tracer)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}".strip().splitlines()[0]
    finally:
        if tracer:
            tracer.close()
            counted |= labelled(sink.snapshots)
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return left, counter.frame_count, breaks, error


def spread(parallel):
    """A fresh copy of the model over both ranks, what to call as its forward, and the counter."""
    model = copy.deepcopy(seeded(FAMILY))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    if parallel.checkpointed != "none":
        options = {"use_reentrant": parallel.checkpointed == "reentrant"}
        model.gradient_checkpointing_enable(options)
    if parallel.compiled == "per-block":
        for layer in model.model.layers:
            layer.compile(fullgraph=True, backend=counter)
    if parallel.kind == "FSDP2":
        mesh = init_device_mesh("cpu", (WORLD,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, model, counter
    if parallel.compiled == "inside":
        model.compile(backend=counter)
    model = DistributedDataParallel(model)
    if parallel.compiled == "outside":
        return model, torch.compile(model, backend=counter), counter
    return model, model, counter
