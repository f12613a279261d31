"""What one of two ranks does to a model of tables: steps under DDP, each rank its own tokens."""

import datetime
import json
from pathlib import Path

import torch
import torch.distributed as dist  # noqa: TID251 - the user's training talks to the other rank
from torch.nn.parallel import DistributedDataParallel

import moetrace
from moetrace.probes import IndexProbe
from tests import tripwire
from tests.product_keys import Lookups, ProductKeyLayer, ProductKeyModel

WORLD = 2
SIDE, HEADS, TOP_K = 32, 2, 4
STEPS = 4
EVERY = 2
GIVEN_UP = 2
"""The step that every rank gives up the first time, after its forward."""


def main(rank, folder):
    """Train, and leave the ids that went into the tables in finished steps in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    tripwire.lay()
    torch.manual_seed(0)
    layers = [ProductKeyLayer(side=SIDE, heads=HEADS, top_k=TOP_K) for _ in range(2)]
    model = ProductKeyModel(layers)
    seen = [Lookups(layer.expert_up, SIDE * SIDE) for layer in layers]
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(100 + rank)
    finished = {}
    probe = IndexProbe(dense_every=1)
    with moetrace.attach(wrapped, Path(folder, "run"), every=EVERY, probes=[probe]) as tracer:
        for step in range(1, STEPS + 1):
            if step == GIVEN_UP:
                tracer.on_step_begin(step)
                wrapped(torch.randn(1, 9, 16))
            for look_ups in seen:
                look_ups.calls.clear()
            tracer.on_step_begin(step)
            # As many tokens as no other rank has, in two parts of one step.
            for tokens in (3 + 4 * rank, 2):
                wrapped(torch.randn(2, tokens, 16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            tracer.on_step_end(step)
            finished[step] = [
                [expert for call in look_ups.calls for expert in call.flatten().tolist()]
                for look_ups in seen
            ]
    left = {"finished": finished, "collectives": list(tripwire.steps_on_it)}
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(left))
    dist.destroy_process_group()
