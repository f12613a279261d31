"""Router weights recorded by the real Trainer of transformers."""

import inspect
import json
import logging
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

import moetrace
from moetrace.compat import RouterWeightTracker
from moetrace_adapters.transformers import RouterWeightTrackingCallback
from tests.spectra import SpectraModel

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:.*lr_scheduler.step:UserWarning"
)

MEAN = "load_balancer.weight_ih_mean"


def trainer(model, folder, *, steps, callbacks=(), **options):
    """A Trainer over rows of four tokens."""
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.arange(64).view(16, 4) % 16]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=0.1,
        optim="sgd",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        **{"save_strategy": "no", "report_to": "none", **options},
    )
    made = transformers.Trainer(model, args, train_dataset=rows, callbacks=list(callbacks))
    made.remove_callback(transformers.PrinterCallback)
    return made


def step_end(callback, model, step):
    """What the Trainer does at the end of a step."""
    args = SimpleNamespace(output_dir=".")
    state = TrainerState(global_step=step)
    callback.on_step_end(args, state, TrainerControl(), model=model)


def test_signature():
    """S0-04, S0-21: four parameters with their defaults; every 100 steps by default."""
    parameters = list(inspect.signature(RouterWeightTrackingCallback).parameters.values())
    assert [(item.name, item.default) for item in parameters[:4]] == [
        ("save_dir", "./router_weight_logs"),
        ("log_every_n_steps", 100),
        ("save_full_weights", False),
        ("max_history", 1000),
    ]


def test_the_documented_example(tmp_path, monkeypatch):
    """S0-30, S0-16: 300 steps leave files of 100, 200, 300 and a summary, checkpoints one too."""
    monkeypatch.chdir(tmp_path)
    made = trainer(
        SpectraModel(),
        "out",
        steps=300,
        save_strategy="steps",
        save_steps=150,
        save_only_model=True,
    )
    router_weight_callback = RouterWeightTrackingCallback(
        save_dir="./router_weight_logs",
        log_every_n_steps=100,
        save_full_weights=False,
        max_history=1000,
    )
    made.add_callback(router_weight_callback)
    made.train()
    assert sorted(os.listdir("router_weight_logs")) == [
        *(f"router_weight_stats_step_{step}.json" for step in (100, 200, 300)),
        "router_weight_summary.json",
        "run",
    ]
    record = json.loads(
        (tmp_path / "router_weight_logs/router_weight_stats_step_300.json").read_text()
    )
    change = record["layers"]["layer_0"]["load_balancer_changes"]["weight_ih_diff_norm"]
    assert change > 0
    summaries = {
        folder: json.loads((tmp_path / folder / "router_weight_summary.json").read_text())
        for folder in ("out/checkpoint-150", "out/checkpoint-300", "router_weight_logs")
    }
    assert [summary["total_steps"] for summary in summaries.values()] == [1, 3, 3]
    assert moetrace.open_run("router_weight_logs/run").finished
    fresh = RouterWeightTracker(save_dir="./router_weight_logs")
    assert fresh.get_weight_trajectory("layer_0", MEAN).steps == [100, 200, 300]


def test_training_is_bit_identical(tmp_path):
    """S0-31: the weights that were trained are those of a training without it."""
    found = []
    for callbacks in ([], [RouterWeightTrackingCallback(tmp_path / "logs", 1)]):
        model = SpectraModel()
        trainer(model, tmp_path / "out", steps=3, callbacks=callbacks).train()
        found.append(torch.cat([item.detach().reshape(-1) for item in model.parameters()]))
    assert torch.equal(*found)


def test_no_router(tmp_path):
    """S0-24: a model without one is refused when training begins, and not later."""
    callback = RouterWeightTrackingCallback(tmp_path / "logs")
    with pytest.raises(moetrace.NoRouterFound, match="targets="):
        callback.on_train_begin(None, TrainerState(), TrainerControl(), model=nn.Linear(2, 2))


def test_what_fails_stays_here(tmp_path, caplog, monkeypatch):
    """S0-16: an error of ours is said once, and the step goes on."""
    callback, model = RouterWeightTrackingCallback(tmp_path / "logs", 1), SpectraModel()

    def fail(*args, **kwargs):
        raise RuntimeError("out of order")

    monkeypatch.setattr(RouterWeightTracker, "track_step", fail)
    with caplog.at_level(logging.WARNING, "moetrace"):
        for step in (1, 2):
            step_end(callback, model, step)
    assert caplog.text.count("training goes on: RuntimeError: out of order") == 1
    callback.tracker._feed.finish()  # what failed keeps the tracker alive until the next collection


class _Run:
    def __init__(self):
        self.rows = []

    def log(self, row):
        self.rows.append(row)


def test_the_open_run_of_wandb(tmp_path, monkeypatch):
    """S0-17, S0-31: nothing is raised while no run is open; then rows carry the global step."""
    wandb = SimpleNamespace(run=None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    callback, model = RouterWeightTrackingCallback(tmp_path / "logs", 1), SpectraModel()
    step_end(callback, model, 1)
    callback.tracker.close()
    wandb.run = _Run()
    step_end(callback, model, 2)
    callback.tracker.close()
    (row,) = wandb.run.rows
    assert row["train/global_step"] == 2
    assert "router_weight/layer_1/load_balancer/weight_hh_norm" in row
