"""Gradient norms in real loops: what they measured, beside the norm that the framework reports."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

import moetrace
from moetrace.gradient_stats import norm_of
from moetrace.sinks import MemorySink
from moetrace_adapters import lightning, transformers
from moetrace_adapters.accelerate import AcceleratedTrace
from tests.adapters.truth import rows
from tests.tiny import seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore:.*lr_scheduler.step:UserWarning",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
)

CLIP = 0.05
"""Small enough that every step is clipped."""


def options(sink):
    """A window a step, with gradients."""
    return {"every": 1, "sinks": [sink], "probes": [moetrace.GradientProbe()]}


def norms(sink):
    """The norm over everything, of each window, and what the records say they measured."""
    windows = [s.gradients for s in sink.snapshots if s.gradients]
    return [norm_of(records) for records in windows], {r.measured for w in windows for r in w}


def trained(folder, trace, *, before_clipping=False, callbacks=(), **changes):
    """A Trainer of three steps of two micro-batches; the norms that it logs itself."""
    usual = {"max_grad_norm": CLIP, "gradient_accumulation_steps": 2, "max_steps": 3}
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=0.1,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{**usual, **changes},
    )
    made = Trainer(
        model=copy.deepcopy(seeded("Qwen3Moe")),
        args=args,
        train_dataset=rows(12),
        callbacks=[*callbacks, trace],
    )
    if before_clipping:
        trace.before_clipping(made)
    made.train()
    return [float(row["grad_norm"]) for row in made.state.log_history if "grad_norm" in row]


class TestTransformers:
    @pytest.mark.parametrize(
        ("changes", "before_clipping"),
        [({}, True), ({"max_grad_norm": 0.0}, False)],
        ids=["told before clipping", "nothing clipped"],
    )
    def test_before_clipping(self, tmp_path, changes, before_clipping):
        """S3-32: the total is the norm that the Trainer logs, of both micro-batches."""
        sink = MemorySink()
        trace = transformers.MoETraceCallback(**options(sink))
        logged = trained(tmp_path, trace, before_clipping=before_clipping, **changes)
        found, measured = norms(sink)
        assert measured == {"pre_clip"}
        assert found == pytest.approx(logged, rel=1e-5)
        assert min(logged) > CLIP

    def test_as_the_optimizer_gets_them(self, tmp_path):
        """A callback comes after the clipping, and then the record says so."""
        sink = MemorySink()
        trained(tmp_path, transformers.MoETraceCallback(**options(sink)))
        found, measured = norms(sink)
        assert measured == {"at_step"}
        assert found == pytest.approx([CLIP] * 3, rel=1e-3)

    def test_a_step_that_the_scaler_skips(self, tmp_path):
        """E2: a step whose update was skipped has its own label, and the numbers go on."""

        class Overflow(TrainerCallback):
            """What accelerate's optimizer says after an overflow; a scaler needs a GPU here."""

            def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
                optimizer._is_overflow = state.global_step == 1

        sink = MemorySink()
        trace = transformers.MoETraceCallback(every=1, sinks=[sink])
        trained(tmp_path, trace, callbacks=[Overflow()])
        spans = [(s.phase, s.first_step, s.last_step) for s in sink.snapshots]
        assert sorted(spans) == [("skipped", 1, 1), ("train", 1, 1), ("train", 3, 3)]


class TestLightning:
    def test_before_clipping(self, tmp_path):
        """S3-32: the total is the norm that a module finds in its own hook before clipping."""

        class Net(pl.LightningModule):
            """A small Qwen3-MoE in a module, as a user writes it."""

            def __init__(self):
                super().__init__()
                self.net = copy.deepcopy(seeded("Qwen3Moe"))
                self.norms = []

            def training_step(self, rows, index):
                return self.net(**rows).loss

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

            def on_before_optimizer_step(self, optimizer):
                gradients = [p.grad for p in self.parameters() if p.grad is not None]
                self.norms.append(float(nn.utils.get_total_norm(gradients)))

        sink, net = MemorySink(), Net()
        pl.Trainer(
            accelerator="cpu",
            max_steps=3,
            accumulate_grad_batches=2,
            gradient_clip_val=CLIP,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[lightning.MoETraceCallback(**options(sink))],
        ).fit(net, DataLoader(rows(12), batch_size=2))
        found, measured = norms(sink)
        assert measured == {"pre_clip"}
        assert found == pytest.approx(net.norms, rel=1e-5)
        assert len(found) == 3


class TestAccelerate:
    def loop(self, sink, *, skip=None):
        """A loop of three steps of two micro-batches; the norms that the accelerator returns."""
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        net = copy.deepcopy(seeded("Qwen3Moe"))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net, optimizer, loader = accelerator.prepare(
            net, optimizer, DataLoader(rows(12), batch_size=2)
        )
        logged, step = [], 0
        with AcceleratedTrace(accelerator, net, log=False, **options(sink)) as trace:
            for micro_batch in loader:
                with trace.accumulate(net):
                    accelerator.backward(net(**micro_batch).loss)
                    if accelerator.sync_gradients:
                        logged.append(float(accelerator.clip_grad_norm_(net.parameters(), CLIP)))
                    optimizer.step()
                    if accelerator.sync_gradients:
                        step += 1
                        optimizer._is_overflow = step == skip
                    optimizer.zero_grad()
        assert "unscale_gradients" not in vars(accelerator)
        return logged

    def test_before_clipping(self):
        """S3-32: the total is the norm that ``clip_grad_norm_`` returns."""
        sink = MemorySink()
        logged = self.loop(sink)
        found, measured = norms(sink)
        assert measured == {"pre_clip"}
        assert found == pytest.approx(logged, rel=1e-5)
        assert len(found) == 3

    def test_a_step_that_the_scaler_skips(self):
        """E2: it has its own label, and is no step."""
        sink = MemorySink()
        self.loop(sink, skip=2)
        spans = [(s.phase, s.first_step, s.last_step) for s in sink.snapshots if len(s.routing)]
        assert sorted(spans) == [("skipped", 1, 1), ("train", 1, 1), ("train", 2, 2)]
