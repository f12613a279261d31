"""What one of two ranks does: a training under DDP in each framework, traced, with the oracle."""

import copy
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist  # noqa: TID251 - the frameworks talk to the other rank
from torch.utils.data import DataLoader

from tests import tripwire
from tests.adapters.truth import found, rows, watched
from tests.tiny import seeded

WORLD = 2
LOOPS = ("accelerate, attached before", "accelerate, attached after", "transformers", "lightning")


def main(rank, folder, port):
    """Run every loop; leave what the oracle of this rank counted in a file."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "TORCHELASTIC_RUN_ID": "two-ranks",
    }
    torch.set_num_threads(1)
    tripwire.lay()
    truth, norms = {}, []
    for loop in LOOPS:
        net = copy.deepcopy(seeded("Qwen3Moe"))
        oracle = watched(net)
        train = {"accelerate": accelerated, "transformers": hugging, "lightning": bolts}
        logged = train[loop.split(",")[0]](net, Path(folder, loop), loop.endswith("before"))
        norms += logged or []
        truth[loop] = found(oracle)
    Path(folder, f"rank-{rank}.json").write_text(
        json.dumps({"truth": truth, "norms": norms, "tripped": tripwire.steps_on_it})
    )
    dist.destroy_process_group()


def accelerated(net, folder, before):
    """Four micro-batches of two rows on each rank, two a step."""
    from accelerate import Accelerator

    from moetrace_adapters.accelerate import AcceleratedTrace

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loader = DataLoader(rows(16), batch_size=2)
    trace = AcceleratedTrace(accelerator, net, folder, every=1) if before else None
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    trace = trace or AcceleratedTrace(accelerator, net, folder, every=1)
    with trace:
        for micro_batch in loader:
            with trace.accumulate(net):
                accelerator.backward(net(**micro_batch).loss)
                optimizer.step()
                optimizer.zero_grad()


def hugging(net, folder, before):
    """Two steps of two rows on each rank, and a checkpoint; the norms that the Trainer logs."""
    import transformers

    import moetrace
    from moetrace_adapters.transformers import MoETraceCallback, RouterWeightTrackingCallback

    args = transformers.TrainingArguments(
        output_dir=f"{folder}-output",
        per_device_train_batch_size=2,
        max_steps=2,
        save_steps=2,
        logging_steps=1,
        max_grad_norm=0.05,
        report_to="none",
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trace = MoETraceCallback(folder, every=1, probes=[moetrace.GradientProbe()])
    weights = RouterWeightTrackingCallback(f"{folder}-weights-{dist.get_rank()}", 1)
    trainer = transformers.Trainer(
        model=net, args=args, train_dataset=rows(16), callbacks=[trace, weights]
    )
    trace.before_clipping(trainer)
    trainer.train()
    return [float(row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]


def bolts(net, folder, before):
    """Two steps of two rows on each rank."""
    import lightning.pytorch as pl

    from moetrace_adapters.lightning import MoETraceCallback

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch_of_rows, index):
            return self.net(**batch_of_rows).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    pl.Trainer(
        default_root_dir=folder.parent,
        max_steps=2,
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[MoETraceCallback(folder, every=1)],
    ).fit(Net(), DataLoader(rows(16), batch_size=2))
