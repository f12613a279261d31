"""Programs that were written for a MoE callback run with their import line changed."""

import copy
import gc
import inspect
import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import moetrace
from moetrace.compat import (
    calculate_load_balancing_loss,
    calculate_routing_entropy,
    create_moe_callback_for_pytorch,
    track_expert_usage,
)
from moetrace.metrics import load_balancing_loss, routing_entropy
from moetrace.sinks import MemorySink
from tests.sinks import wandb_file
from tests.tiny import StackedExperts, batch, seeded

wandb = pytest.importorskip("wandb")

EXPERTS = 8
SIGN = "\N{WARNING SIGN}\N{VARIATION SELECTOR-16}"


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """The working folder of a program, with the only run of W&B in it; no network is needed."""
    wandb.teardown()  # it reads its variables once
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    wandb.teardown()


class Router(nn.Module):
    """Gives each expert as many tokens as it is told, one expert a token."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(EXPERTS, 4))
        self.top_k = 1
        self.load = [1] * EXPERTS
        self.sharpness = 1.0

    def forward(self, hidden):
        """Logits, weights, ids."""
        ids = torch.repeat_interleave(torch.arange(EXPERTS), torch.tensor(self.load))[:, None]
        logits = torch.zeros(len(ids), EXPERTS) + hidden.sum() * 0
        logits = logits.scatter(1, ids, self.sharpness)
        return logits, torch.ones(ids.shape), ids


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = Router()
        self.experts = StackedExperts(EXPERTS)

    def forward(self, hidden):
        """Route, then mix."""
        self.gate(hidden)
        return self.experts(hidden)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = Block()

    def forward(self, hidden):
        """The block alone."""
        return self.mlp(hidden)


class Model(nn.Module):
    """Layers whose loads a test says."""

    def __init__(self, layers=1):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.auxiliary = {}

    def forward(self, hidden):
        """An output as models have it."""
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(loss=hidden.sum(), **self.auxiliary)


def steps(callback, model, count):
    """Some steps of one forward each."""
    for _ in range(count):
        callback.on_step_begin()
        model(torch.zeros(1, 4))
        callback.on_step_end()


def rows_of(sink):
    """The rows that a logger got, by step."""
    return {s.last_step: s.metrics(per_layer=True) for s in sink.snapshots if s.phase == "train"}


class TestConcepts:
    def test_usage(self):
        """S1-03, S1-11, S1-50: counts of 100 assignments add up to 100, with 0 where none fell."""
        assignments = torch.randint(0, 7, (50, 2))
        counts = track_expert_usage(assignments, 8)
        flat = assignments.flatten().tolist()
        assert counts.tolist() == [flat.count(expert) for expert in range(8)]
        assert counts.sum() == 100
        assert counts[7] == 0

    def test_entropy(self):
        """S1-05, S1-12, S1-51: ln 8 for uniform rows, 0 for one-hot ones, and as a metric says."""
        assert calculate_routing_entropy(torch.full((4, 8), 0.125)) == pytest.approx(math.log(8))
        assert calculate_routing_entropy(torch.eye(8)) == pytest.approx(0.0, abs=1e-6)
        probs = torch.softmax(torch.randn(4, 8), dim=-1)
        entropy = calculate_routing_entropy(probs)
        assert type(entropy) is float
        total = float(-(probs.double() * probs.double().log()).sum())
        assert entropy == pytest.approx(routing_entropy(total, tokens=4), abs=1e-6)

    def test_load_balancing_loss(self):
        """S1-06, S1-52: 1 where all is even, 8 where one takes all, else as a metric says."""
        even = calculate_load_balancing_loss(torch.full((8, 8), 0.125), torch.arange(8), 8)
        assert even.shape == ()
        assert even.item() == pytest.approx(1.0)
        one = torch.zeros(5, 8).index_fill_(1, torch.tensor(2), 1.0)
        assert calculate_load_balancing_loss(one, torch.full((5,), 2), 8).item() == pytest.approx(8)
        probs, ids = torch.softmax(torch.randn(100, 8), dim=-1), torch.randint(0, 8, (100,))
        counts = np.bincount(ids.numpy(), minlength=8)
        expected = load_balancing_loss(
            counts, probs.double().sum(0).numpy(), assignments=100, tokens=100
        )
        assert calculate_load_balancing_loss(probs, ids, 8).item() == pytest.approx(
            expected, rel=1e-5
        )


DEFAULTS = {
    "log_every_n_steps": 100,
    "logger": None,
    "log_to_console": True,
    "log_heatmap_every": 1000,
    "alert_threshold_imbalance": 5.0,
    "unused_expert_threshold": 0.3,
    "entropy_threshold": 0.1,
    "save_detailed_logs": False,
    "window_size": 1000,
    "log_dir": "./moe_logs",
}


class TestParameters:
    def test_of_both_factories(self):
        """S1-01, S1-02, S1-16 to S1-25: the names and defaults that callers rely on."""
        from moetrace_adapters.transformers import create_moe_callback_for_transformers

        for factory, more in (
            (create_moe_callback_for_pytorch, {"model": inspect.Parameter.empty}),
            (create_moe_callback_for_transformers, {}),
        ):
            given = inspect.signature(factory).parameters
            assert {name: item.default for name, item in given.items()} == {**more, **DEFAULTS}

    def test_are_held_as_they_were_given(self):
        """S1-53: the callback for a Trainer is made without a model, and holds what it was told."""
        from moetrace_adapters.transformers import create_moe_callback_for_transformers

        given = {
            "log_every_n_steps": 50,
            "logger": MemorySink(),
            "log_to_console": False,
            "log_heatmap_every": 500,
            "alert_threshold_imbalance": 4.0,
            "unused_expert_threshold": 0.25,
            "entropy_threshold": 0.1,
            "save_detailed_logs": False,
        }
        callback = create_moe_callback_for_transformers(**given)
        assert {name: getattr(callback.monitoring, name) for name in given} == given

    def test_the_model_has_to_be_given(self):
        """S1-24: without a model there is nothing to watch."""
        with pytest.raises(TypeError, match="model"):
            create_moe_callback_for_pytorch(log_every_n_steps=1)

    def test_a_model_without_a_router_is_refused(self):
        """S1-24: what came near is listed."""
        model = nn.Sequential()
        model.router = nn.Linear(4, 3)
        with pytest.raises(moetrace.NoRouterFound, match=r"router \(Linear\)"):
            create_moe_callback_for_pytorch(model)

    def test_a_logger_that_nobody_knows_is_refused(self):
        """S1-17: what can be a logger is said."""
        with pytest.raises(TypeError, match="found int as a sink"):
            create_moe_callback_for_pytorch(Model(), logger=3)


class TestRows:
    def test_a_row_is_its_whole_window(self):
        """S1-16: rows at 2, 4 and 5, each with everything since the one before."""
        model, sink = Model(), MemorySink()
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=2, logger=sink, log_to_console=False
        )
        steps(callback, model, 5)
        callback.cleanup()
        assert [s.last_step for s in sink.snapshots] == [2, 4, 5]
        assert [s["layers.0.mlp"].tokens for s in sink.snapshots] == [16, 16, 8]

    def test_have_the_known_names(self):
        """S1-07, S1-30, S1-31, S1-33, S1-47: the dashboard's keys, with hand-made values."""
        model, sink = Model(layers=2), MemorySink()
        model.layers[0].mlp.gate.load = [8, 0, 0, 0, 0, 0, 0, 0]
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=1, logger=sink, log_to_console=False
        )
        steps(callback, model, 1)
        callback.cleanup()
        row = rows_of(sink)[1]
        assert row["moe/layers.0.mlp/expert_cv"] == pytest.approx(7**0.5)
        assert row["moe/layers.1.mlp/expert_cv"] == 0.0
        assert row["moe/avg_expert_cv"] == pytest.approx(7**0.5 / 2)
        assert row["moe/layers.0.mlp/max_usage_ratio"] == 8.0
        assert row["moe/layers.0.mlp/unused_experts"] == 7
        assert row["moe/layers.0.mlp/active_experts"] == 1
        p, q = math.e / (math.e + 7), 1 / (math.e + 7)
        entropy = -(p * math.log(p) + 7 * q * math.log(q))
        assert row["moe/layers.0.mlp/routing_entropy"] == pytest.approx(entropy, abs=1e-5)
        assert row["moe/avg_routing_entropy"] == pytest.approx(entropy, abs=1e-5)
        assert row["moe/step"] == 1

    def test_unused_experts_are_those_never_used_since_the_start(self):
        """S1-32: half unused in each window and other halves: in total none is left."""
        model, sink = Model(), MemorySink()
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=1, logger=sink, log_to_console=False
        )
        for load in ([2, 2, 2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 2, 2, 2, 2]):
            model.layers[0].mlp.gate.load = load
            steps(callback, model, 1)
        callback.cleanup()
        rows = rows_of(sink).values()
        assert [row["moe/layers.0.mlp/unused_experts"] for row in rows] == [4, 4]
        assert [row["moe/total_unused_experts"] for row in rows] == [4, 0]

    def test_the_loss_that_the_model_returns(self):
        """S1-28: aux_loss or load_balance_loss of the output, averaged over the window."""
        model, sink = Model(), MemorySink()
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=2, logger=sink, log_to_console=False
        )
        for value in (1.0, 2.0):
            model.auxiliary = {"aux_loss": torch.tensor(value), "load_balance_loss": None}
            steps(callback, model, 1)
        model.auxiliary = {"load_balance_loss": torch.tensor([0.5])}
        steps(callback, model, 1)
        model.auxiliary = {"aux_loss": "none"}
        model.eval()
        callback.cleanup()
        rows = rows_of(sink)
        assert rows[2]["moe/aux_loss"] == 1.5
        assert "moe/load_balance_loss" not in rows[2]
        assert rows[3]["moe/load_balance_loss"] == 0.5

    def test_a_model_that_returns_no_loss_has_no_such_key(self):
        """S1-28: absent, not 0.0."""
        model, sink = Model(), MemorySink()
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=1, logger=sink, log_to_console=False
        )
        steps(callback, model, 1)
        callback.cleanup()
        assert [key for key in rows_of(sink)[1] if "aux" in key or "balance_loss" in key] == []

    def test_a_copy_of_the_model_carries_nothing(self):
        """A deepcopy or a pickle of a watched model works, and its copy is watched by nobody."""
        model, sink = Model(), MemorySink()
        model.auxiliary = {"aux_loss": torch.tensor(1.0)}
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=1, logger=sink, log_to_console=False
        )
        pickle.dumps(model)
        other = copy.deepcopy(model)
        other.auxiliary = {"aux_loss": torch.tensor(100.0)}
        other(torch.zeros(1, 4))
        steps(callback, model, 1)
        callback.cleanup()
        assert rows_of(sink)[1]["moe/aux_loss"] == 1.0


class TestPictures:
    @pytest.mark.parametrize(
        ("every", "pictures", "steps_with"), [(1, 3, [3, 6]), (2, 3, [4, 6]), (4, 2, [4, 8])]
    )
    def test_come_when_they_are_due(self, tmp_path, every, pictures, steps_with):
        """S1-19, S1-34: with the window that passes a multiple, also where it is none of rows."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        model = Model()
        with SummaryWriter(tmp_path) as writer:
            callback = create_moe_callback_for_pytorch(
                model,
                log_every_n_steps=every,
                logger=writer,
                log_to_console=False,
                log_heatmap_every=pictures,
            )
            steps(callback, model, 8)
            callback.cleanup()
        events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
        events.Reload()
        shown = events.Images("moe/layers.0.mlp/usage_heatmap")
        assert [image.step for image in shown] == steps_with
        assert "moe/total_unused_experts" in events.Tags()["scalars"]


def alerted(capsys, load, *, sharpness=1.0, **thresholds):
    """What the console says of one window in which the experts get this load."""
    model = Model()
    model.layers[0].mlp.gate.load, model.layers[0].mlp.gate.sharpness = load, sharpness
    callback = create_moe_callback_for_pytorch(model, log_every_n_steps=1, **thresholds)
    steps(callback, model, 1)
    callback.cleanup()
    said = capsys.readouterr().out.splitlines()
    return [line.partition("step 1: layers.0.mlp: ")[2] for line in said if "Alert" in line]


class TestAlerts:
    def test_the_lines(self, capsys):
        """S1-08, S1-37, S1-38, S1-57: at those steps, for those layers, byte for byte."""
        model = Model(layers=5)
        gates = [layer.mlp.gate for layer in model.layers]
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=1, alert_threshold_imbalance=4.0, unused_expert_threshold=0.25
        )
        steps(callback, model, 14)
        gates[0].load = [113, 13, 13, 13, 12, 12, 12, 12]  # 113 over 200 / 8 is 4.52
        steps(callback, model, 8)
        gates[4].load = [4, 4, 4, 4, 4, 0, 0, 0]
        steps(callback, model, 3)
        callback.cleanup()
        said = [line for line in capsys.readouterr().out.splitlines() if "Alert" in line]
        assert said == [
            f"{SIGN}  MoE Alert at step 15: layers.0.mlp: Severe expert imbalance (ratio: 4.52)",
            f"{SIGN}  MoE Alert at step 23: layers.4.mlp: 3/8 experts unused",
        ]
        assert callback.get_summary() == {
            "total_steps": 25,
            "total_alerts": 2,
            "alert_types": {"severe_imbalance": 1, "unused_experts": 1},
        }

    def test_imbalance_above_the_threshold(self, capsys):
        """S1-20, S1-37: exactly 4 times the mean is silent, more is not."""
        options = {"alert_threshold_imbalance": 4.0, "unused_expert_threshold": 1.0}
        assert alerted(capsys, [7, 1, 1, 1, 1, 1, 1, 1], **options) == []
        heavier = alerted(capsys, [8, 1, 1, 1, 1, 1, 1, 1], **options)
        assert heavier == ["Severe expert imbalance (ratio: 4.27)"]

    def test_unused_experts_from_the_threshold_on(self, capsys):
        """S1-21, S1-38: 1 of 8 is silent at 0.25, exactly 2 of 8 is not."""
        options = {"unused_expert_threshold": 0.25}
        assert alerted(capsys, [1, 1, 1, 1, 1, 1, 1, 0], **options) == []
        assert alerted(capsys, [1, 1, 1, 1, 1, 1, 0, 0], **options) == ["2/8 experts unused"]

    def test_low_entropy(self, capsys):
        """S1-22, S1-39: one-hot probabilities are below 0.1 nats, spread ones are not."""
        spread = [1] * EXPERTS
        assert alerted(capsys, spread, sharpness=1.0) == []
        assert alerted(capsys, spread, sharpness=30.0) == ["Low routing entropy (0.0000)"]

    def test_the_load_balancing_loss_is_watched(self, capsys):
        """S1-29, S1-40: where one expert takes all probability, the loss is E, and that is said."""
        load = [9, 0, 0, 0, 0, 0, 0, 0]
        said = alerted(
            capsys,
            load,
            sharpness=30.0,
            alert_threshold_imbalance=9.0,
            unused_expert_threshold=1.0,
            entropy_threshold=1e-9,
        )
        assert [line for line in said if "oad-balancing loss" in line] != []

    def test_the_logger_is_told(self):
        """S1-46: the logger gets the alert, under the name of its kind."""
        model, sink = Model(), Alerted()
        model.layers[0].mlp.gate.load = [8, 0, 0, 0, 0, 0, 0, 0]
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=1, logger=sink, log_to_console=False
        )
        steps(callback, model, 1)
        callback.cleanup()
        kinds = [(alert.kind, alert.layer, alert.step) for alert in sink.alerts]
        assert ("severe_imbalance", "layers.0.mlp", 1) in kinds
        assert ("unused_experts", "layers.0.mlp", 1) in kinds


class Alerted(MemorySink):
    """Keeps alerts too."""

    def __init__(self):
        super().__init__()
        self.alerts = []

    def alert(self, alert):
        """Keep it."""
        self.alerts.append(alert)


class TestConsole:
    def test_the_main_figures(self, capsys):
        """S1-18, S1-35: three figures a window, four decimals."""
        model = Model()
        model.layers[0].mlp.gate.load = [1, 1, 1, 1, 1, 1, 1, 0]
        callback = create_moe_callback_for_pytorch(model, log_every_n_steps=2)
        steps(callback, model, 4)
        callback.cleanup()
        # The CV of seven ones and a zero is 1 / sqrt(7).
        assert capsys.readouterr().out == "".join(
            f"MoE step {step}: moe/avg_expert_cv=0.3780, moe/avg_routing_entropy=1.9943, "
            "moe/total_unused_experts=1.0000\n"
            for step in (2, 4)
        )

    def test_not_a_character(self, capfd, tmp_path, monkeypatch):
        """S1-09, S1-18: switched off, nothing is printed, alerts included; nothing is written."""
        monkeypatch.chdir(tmp_path)
        model = Model()
        model.layers[0].mlp.gate.load = [8, 0, 0, 0, 0, 0, 0, 0]
        callback = create_moe_callback_for_pytorch(model, log_every_n_steps=1, log_to_console=False)
        steps(callback, model, 3)
        callback.cleanup()
        assert capfd.readouterr() == ("", "")
        assert callback.get_summary()["total_alerts"] > 0
        assert list(tmp_path.iterdir()) == []


class TestDetailedLogs:
    def test_a_file_a_window(self, tmp_path, monkeypatch):
        """S1-09, S1-23, S1-25: valid JSON beside a run folder, null where a metric is undefined."""
        monkeypatch.chdir(tmp_path)
        model = Model()
        callback = create_moe_callback_for_pytorch(
            model, log_every_n_steps=2, log_to_console=False, save_detailed_logs=True
        )
        model.layers[0].mlp.gate.sharpness = float("nan")
        steps(callback, model, 3)
        callback.cleanup()
        folder = tmp_path / "moe_logs"
        assert sorted(path.name for path in folder.iterdir()) == [
            "detailed_log_step_2.json",
            "detailed_log_step_3.json",
            "run",
        ]

        def refuse(name):
            raise AssertionError(f"found {name} in JSON")

        text = (folder / "detailed_log_step_2.json").read_text()
        read = json.loads(text, parse_constant=refuse)
        assert read["step"] == 2
        assert read["timestamp"] > 1.7e9
        layer = read["metrics"]["layers.0.mlp"]
        assert (layer["expert_cv"], layer["unused_experts"]) == (0.0, 0.0)
        assert layer["routing_entropy"] is None
        assert moetrace.open_run(folder / "run").steps().tolist() == [[1, 2], [3, 3]]

    def test_pictures_as_files(self, tmp_path):
        """S1-48: a picture per layer every N steps, a row per expert and a column per window."""
        model = Model()
        callback = create_moe_callback_for_pytorch(
            model,
            log_every_n_steps=2,
            log_heatmap_every=4,
            log_to_console=False,
            save_detailed_logs=True,
            log_dir=tmp_path,
        )
        model.layers[0].mlp.gate.load = [8, 0, 0, 0, 0, 0, 0, 0]
        steps(callback, model, 5)
        callback.cleanup()
        (path,) = tmp_path.glob("*.png")
        assert path.name == "layers.0.mlp_heatmap_step_4.png"
        picture = Image.open(path)
        rows = [picture.getpixel((0, 16 + 32 * expert)) for expert in range(8)]
        assert picture.size == (2 * 32, 8 * 32)
        assert rows[0] != rows[1]
        assert rows[1:] == [(13, 16, 54)] * 7


class TestTheEnd:
    def test_cleanup_leaves_nothing_and_may_be_called_twice(self):
        """S1-44, S1-56: no hook is on any module, and a second call is harmless."""
        model = Model()
        callback = create_moe_callback_for_pytorch(model, log_to_console=False)
        assert len(callback.tracer.sites) == 1
        assert any(module._forward_hooks for module in model.modules())
        callback.cleanup()
        callback.cleanup()
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    def test_forgotten(self, tmp_path):
        """S1-44: a callback that is dropped without cleanup() leaves a whole run."""
        model = Model()
        callback = create_moe_callback_for_pytorch(
            model,
            log_every_n_steps=2,
            log_to_console=False,
            save_detailed_logs=True,
            log_dir=tmp_path,
        )
        steps(callback, model, 3)
        del callback, model
        gc.collect()
        assert moetrace.open_run(tmp_path / "run").steps().tolist() == [[1, 2], [3, 3]]


def data(count):
    """Rows without padding, as a loader gives them."""
    ids, _ = batch(1, rows=count)
    return [{"input_ids": row, "labels": row} for row in ids]


LOOP = """
import torch
import wandb
from moetrace.compat import create_moe_callback_for_pytorch

optimizer = torch.optim.Adam(model.parameters())
wandb.init(project="a-plain-loop")
moe_callback = create_moe_callback_for_pytorch(
    model=model,
    log_every_n_steps=100,
    logger=wandb,
)
for epoch in range(3):
    for batch in train_dataloader:
        moe_callback.on_step_begin()
        optimizer.zero_grad()
        outputs = model(input_ids=batch["input_ids"], labels=batch["labels"])
        outputs.loss.backward()
        optimizer.step()
        moe_callback.on_step_end()
moe_callback.cleanup()
"""

TRAINER = """
import wandb
from transformers import Trainer, TrainingArguments
from moetrace_adapters.transformers import create_moe_callback_for_transformers

wandb.init(project="a-trainer", name="a-run")
moe_callback = create_moe_callback_for_transformers(
    log_every_n_steps=50,
    logger=wandb,
    log_to_console=True,
    log_heatmap_every=500,
    alert_threshold_imbalance=4.0,
    unused_expert_threshold=0.25,
    entropy_threshold=0.1,
    save_detailed_logs=False,
)
training_args = TrainingArguments(output_dir="./results", report_to="wandb", **more)
trainer = Trainer(
    model=model,
    args=training_args,
    train_dataset=train_dataset,
    callbacks=[moe_callback],
)
trainer.train()
"""


class TestPrograms:
    def test_a_loop_of_ones_own(self, run_folder, capsys):
        """S1-02, S1-10, S1-43, S1-55, S1-56: three epochs, rows at 100, 200 and at the end."""
        names = {
            "model": copy.deepcopy(seeded("Qwen3Moe")),
            "train_dataloader": DataLoader(data(70), batch_size=1),
        }
        exec(LOOP, names)
        wandb.finish()
        rows = [row for row in wandb_file.rows(run_folder) if "moe/avg_expert_cv" in row]
        assert [row["moe/step"] for row in rows] == [100, 200, 210]
        callback = names["moe_callback"]
        assert len(callback.tracer.sites) == 2
        # 12 tokens a step, 2 experts each, 8 experts
        counted = sum(
            row[f"moe/{site.name}/active_experts"] > 0
            for row in rows
            for site in callback.tracer.sites
        )
        assert counted == 6
        assert "MoE step 210: moe/avg_expert_cv=" in capsys.readouterr().out
        assert not any(module._forward_hooks for module in names["model"].modules())

    def test_a_trainer(self, run_folder, capsys):
        """S1-01, S1-13, S1-36, S1-41, S1-42, S1-45, S1-54: rows of both loggers; the same bits."""
        from transformers import Trainer, TrainingArguments

        more = {
            "max_steps": 100,
            "per_device_train_batch_size": 1,
            "logging_steps": 10,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        plain = copy.deepcopy(seeded("Qwen3Moe"))
        args = TrainingArguments(output_dir="./results", report_to="none", **more)
        untraced = Trainer(model=plain, args=args, train_dataset=data(64))
        untraced.train()
        names = {
            "model": copy.deepcopy(seeded("Qwen3Moe")),
            "train_dataset": data(64),
            "more": more,
        }
        exec(TRAINER, names)
        wandb.finish()
        losses, expected = (
            [row["loss"] for row in done.state.log_history if "loss" in row]
            for done in (names["trainer"], untraced)
        )
        assert losses == expected
        assert len(losses) == 10
        weights = names["model"].state_dict().values()
        assert all(map(torch.equal, weights, plain.state_dict().values()))

        rows = wandb_file.rows(run_folder)
        ours = [row for row in rows if "moe/avg_expert_cv" in row]
        assert [row["moe/step"] for row in ours] == [50, 100]
        shown = {"moe/avg_expert_cv", "moe/avg_routing_entropy", "moe/total_unused_experts"}
        assert all(shown <= row.keys() for row in ours)
        assert all("moe/model.layers.0.mlp/expert_cv" in row for row in ours)
        theirs = [row["train/global_step"] for row in rows if "train/loss" in row]
        assert theirs == list(range(10, 101, 10))
        said = capsys.readouterr().out
        assert "MoE step 100: moe/avg_expert_cv=" in said
        summary = names["moe_callback"].get_summary()
        assert f"MoE summary: 100 steps, {summary['total_alerts']} alerts" in said

    def test_a_trainer_draws_its_pictures(self, tmp_path, capsys):
        """S1-19, S1-54: the picture of each layer when it is due, also under accumulation."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter
        from transformers import Trainer, TrainingArguments

        from moetrace_adapters.transformers import create_moe_callback_for_transformers

        model = copy.deepcopy(seeded("Qwen3Moe"))
        model.config.output_router_logits = True
        with SummaryWriter(tmp_path / "board") as writer:
            callback = create_moe_callback_for_transformers(
                log_every_n_steps=2, logger=writer, log_to_console=False, log_heatmap_every=3
            )
            args = TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=5,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=2,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            Trainer(model=model, args=args, train_dataset=data(16), callbacks=[callback]).train()
        events = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0})
        events.Reload()
        pictures = events.Images("moe/model.layers.0.mlp/usage_heatmap")
        assert [picture.step for picture in pictures] == [4]
        assert [e.step for e in events.Scalars("moe/total_unused_experts")] == [2, 4, 5]
        # The model's own loss, near K = 2 for an untrained model of top-2.
        shown = [event.value for event in events.Scalars("moe/aux_loss")]
        assert shown == pytest.approx([2.0] * 3, abs=0.3)
        assert callback.get_summary()["total_steps"] == 5
        assert not model._forward_hooks
