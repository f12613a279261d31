"""The callback in the real Trainer of lightning."""

import copy
import csv
import inspect
import typing

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

import moetrace
from moetrace.sinks import MemorySink
from moetrace.tracer import Tracer
from moetrace_adapters.lightning import MoETraceCallback
from tests.adapters.truth import LAYERS, counted, found, rows, spans, watched
from tests.tiny import seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:You defined a `validation_step` but have no",
    "ignore:The number of training batches",
    "ignore:You're resuming from a checkpoint that ended before the epoch",
    "ignore:Using ModelCheckpoint with manual optimization",
    "ignore:.*LeafSpec:FutureWarning",
)

NAMES = tuple(f"net.{layer}" for layer in LAYERS)


class Net(pl.LightningModule):
    """A small Qwen3-MoE in a module, as a user writes it."""

    def __init__(self):
        super().__init__()
        self.net = copy.deepcopy(seeded("Qwen3Moe"))
        self.losses = []

    def training_step(self, rows, index):
        """The model's own loss."""
        loss = self.net(**rows).loss
        self.losses.append(loss.detach())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, rows, index):
        """The same of other rows."""
        self.losses.append(self.net(**rows).loss)

    def configure_optimizers(self):
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TwoOptimizers(Net):
    """Steps one optimizer for the routers and one for the rest, in every batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, rows, index):
        """Both step."""
        loss = super().training_step(rows, index)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        """The routers apart."""
        routers = [p for name, p in self.named_parameters() if ".gate." in name]
        rest = [p for name, p in self.named_parameters() if ".gate." not in name]
        return [torch.optim.SGD(routers, lr=0.1), torch.optim.SGD(rest, lr=0.1)]


def loader(count):
    """A loader of padded rows, two a batch."""
    return DataLoader(rows(count), batch_size=2)


def fit(module, folder, *, callbacks=(), validate=False, checkpoint=None, **options):
    """Fit a module for four steps, where the options do not say otherwise."""
    usual = {
        "max_steps": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 2,
    }
    trainer = pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**usual, **options})
    torch.manual_seed(0)
    trainer.fit(module, loader(12), loader(3) if validate else None, ckpt_path=checkpoint)
    return trainer


def left(module):
    """What a training leaves: its losses, its weights, the random state."""
    return [*module.losses, *module.state_dict().values(), torch.get_rng_state()]


def same(one, other):
    """Whether two trainings left the same, bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def untraced(folder, kind=Net, **options):
    """What a plain training leaves, and what the oracle counts in it by the user's names."""
    module = kind()
    oracle = watched(module.net)
    fit(module, folder, **options)
    by_phase = found(oracle)
    return left(module), {
        phase: {f"net.{layer}": row for layer, row in counts.items()}
        for phase, counts in by_phase.items()
    }


class TestCounting:
    @pytest.mark.parametrize(
        ("kind", "options", "windows"),
        [
            (Net, {}, [(1, 2), (3, 4)]),
            (Net, {"accumulate_grad_batches": 2}, [(1, 2), (3, 4)]),
            (
                Net,
                {"accumulate_grad_batches": 4, "max_epochs": 2, "max_steps": -1},
                [(1, 2), (3, 4)],
            ),
            (TwoOptimizers, {"max_steps": 8}, [(1, 2), (3, 4)]),
        ],
        ids=["plain", "accumulation", "a short last accumulation", "two optimizers"],
    )
    def test_every_token_once(self, tmp_path, kind, options, windows):
        """Counts equal the oracle, windows are of stepping batches, no bit changes."""
        before, truth = untraced(tmp_path, kind, **options)
        sink, module = MemorySink(), kind()
        fit(module, tmp_path, callbacks=[MoETraceCallback(every=2, sinks=[sink])], **options)
        assert counted(sink.snapshots, "train") == truth["train"]
        assert spans(sink.snapshots, "train") == windows
        assert {snapshot.phase for snapshot in sink.snapshots} == {"train"}
        assert same(left(module), before)

    @pytest.mark.parametrize("batches", [1, 2])
    def test_validation_is_a_phase_and_the_sanity_check_is_none(self, tmp_path, batches):
        """Validation counts at the step where it ran; what the sanity check ran is not there."""
        options = {"validate": True, "accumulate_grad_batches": batches, "val_check_interval": 3}
        options["max_steps"] = 6 // batches
        before, with_sanity = untraced(tmp_path, **options)
        _, truth = untraced(tmp_path, **options, num_sanity_val_steps=0)
        assert with_sanity["eval"] != truth["eval"]
        sink, module = MemorySink(), Net()
        fit(module, tmp_path, callbacks=[MoETraceCallback(every=2, sinks=[sink])], **options)
        assert counted(sink.snapshots, "train") == truth["train"]
        assert counted(sink.snapshots, "eval") == truth["eval"]
        # With two batches a step, the first validation lies in the middle of the second step.
        assert spans(sink.snapshots, "eval") == {1: [(3, 3), (6, 6)], 2: [(2, 2), (3, 3)]}[batches]
        assert same(left(module), before)

    def test_named_as_the_user_knows_them(self, tmp_path):
        """A compiled part of the module keeps the names of the plain one."""
        sink, module = MemorySink(), Net()
        module.net = torch.compile(module.net, backend="eager")
        callback = MoETraceCallback(sinks=[sink])
        fit(module, tmp_path, callbacks=[callback], max_steps=1, validate=True)
        assert sink.snapshots[0].layers == NAMES
        assert sink.snapshots[0][NAMES[0]].tokens == 19  # 2 rows of 12, 5 of them padding


def table(folder):
    """The rows of the newest CSV log, by step, empty cells left out."""
    newest = max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as lines:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]


class TestLoggers:
    @pytest.mark.parametrize(("kind", "steps"), [(Net, 4), (TwoOptimizers, 8)])
    def test_a_window_stands_in_the_row_of_its_last_batch(self, tmp_path, kind, steps):
        """Every logger gets it at the number that lightning gives train_loss of that batch."""
        loggers = [CSVLogger(tmp_path / "a"), CSVLogger(tmp_path / "b")]
        sink = MemorySink()
        callback = MoETraceCallback(every=2, sinks=[sink])
        fit(
            kind(),
            tmp_path,
            callbacks=[callback],
            logger=loggers,
            max_steps=steps,
            log_every_n_steps=1,
        )
        for folder in (tmp_path / "a", tmp_path / "b"):
            read = table(folder)
            losses = [row["step"] for row in read if "train_loss" in row]
            assert losses == [0, 1, 2, 3]
            ours = {row["step"]: row for row in read if "moe/avg_expert_cv" in row}
            assert list(ours) == [1, 3]
            for snapshot, row in zip(sink.snapshots, ours.values(), strict=True):
                shown = snapshot.metrics()
                assert {key: row[key] for key in shown} == pytest.approx(shown)

    def test_validation_has_keys_of_its_own(self, tmp_path):
        """A phase other than train stands before the key."""
        options = {"logger": CSVLogger(tmp_path), "validate": True, "val_check_interval": 4}
        fit(Net(), tmp_path, callbacks=[MoETraceCallback(every=4)], **options)
        rows_of = [row for row in table(tmp_path) if "eval/moe/avg_expert_cv" in row]
        assert [row["step"] for row in rows_of] == [3]

    def test_may_be_switched_off(self, tmp_path):
        """log=False leaves the loggers to the user."""
        fit(
            Net(),
            tmp_path,
            callbacks=[MoETraceCallback(log=False)],
            logger=CSVLogger(tmp_path),
            log_every_n_steps=1,
        )
        assert not any("moe/avg_expert_cv" in row for row in table(tmp_path))

    def test_a_logger_that_raises_changes_no_bit(self, tmp_path, caplog):
        """What a logger does with our row cannot stop the training."""

        class Refuses(CSVLogger):
            def log_metrics(self, metrics, step=None):
                if any(key.startswith("moe/") for key in metrics):
                    raise OSError("disk full")

        before, _ = untraced(tmp_path)
        module = Net()
        callback = MoETraceCallback(every=1)
        fit(module, tmp_path, callbacks=[callback], logger=Refuses(tmp_path))
        assert same(left(module), before)
        assert "moetrace failed and training goes on: OSError: disk full" in caplog.text


class TestResume:
    @pytest.mark.parametrize(("kind", "per_batch"), [(Net, 1), (TwoOptimizers, 2)])
    def test_a_resumed_run_reads_as_one(self, tmp_path, kind, per_batch):
        """Windows end at a checkpoint; what follows is counted by the attempt that resumed."""
        folder = tmp_path / "run"

        def run(where, traced):
            def callbacks():
                saves = ModelCheckpoint(
                    where, "saved", every_n_train_steps=3 * per_batch, save_top_k=-1
                )
                return [saves, *([MoETraceCallback(folder, every=2)] if traced else [])]

            options = {"enable_checkpointing": True, "callbacks": callbacks()}
            fit(kind(), where, max_steps=5 * per_batch, **options)
            options["callbacks"] = callbacks()
            module = kind()
            oracle = watched(module.net)
            checkpoint = str(where / "saved.ckpt")
            fit(module, where, max_steps=6 * per_batch, checkpoint=checkpoint, **options)
            return left(module), found(oracle)["train"]

        _, before = untraced(tmp_path, kind, max_steps=3 * per_batch)
        expected, after = run(tmp_path / "untraced", False)
        resumed, _ = run(tmp_path / "traced", True)
        read = moetrace.open_run(folder)
        assert read.steps().tolist() == [[1, 2], [3, 3], [4, 4], [5, 6]]
        assert read.attempts == (0, 1)
        total = read.counts().sum(axis=0)
        for row, layer in enumerate(LAYERS):
            both = zip(before["train"][f"net.{layer}"], after[layer], strict=True)
            assert total[row].tolist() == [a + b for a, b in both]
        assert same(resumed, expected)

    def test_two_callbacks_have_states_of_their_own(self):
        """The key of the state holds the run folder."""
        assert MoETraceCallback("runs/a").state_key != MoETraceCallback("runs/b").state_key
        assert "runs/a" in MoETraceCallback("runs/a").state_key

    def test_the_state_is_the_place_of_the_run(self, tmp_path):
        """A checkpoint holds the folder of the run and the step, nothing that grows."""
        callback = MoETraceCallback(tmp_path / "run")
        fit(Net(), tmp_path, callbacks=[callback], max_steps=3)
        assert callback.state_dict() == {"run": str(tmp_path / "run"), "step": 3}


class TestTheEnd:
    def test_a_training_that_fails_keeps_what_it_counted(self, tmp_path):
        """An exception in a step closes the run; the step that failed is no window of train."""

        class Fails(Net):
            def training_step(self, rows, index):
                loss = super().training_step(rows, index)
                if index == 3:
                    raise FloatingPointError("loss is NaN")
                return loss

        folder = tmp_path / "run"
        with pytest.raises(FloatingPointError):
            fit(Fails(), tmp_path, callbacks=[MoETraceCallback(folder, every=2)])
        read = moetrace.open_run(folder)
        assert read.finished
        assert read.steps().tolist() == [[1, 2], [3, 3]]
        assert "aborted" in read.phases

    def test_nothing_is_left_on_the_module(self, tmp_path):
        """After fit() the module is as it was before."""
        module = Net()
        fit(module, tmp_path, callbacks=[MoETraceCallback()])
        assert not any(part._forward_hooks for part in module.modules())


def broken(*args, **kwargs):
    """What a tracer does that has a fault in it."""
    raise RuntimeError("a fault of ours")


class TestBarrier:
    @pytest.mark.parametrize("method", ["on_step_begin", "on_step_end", "flush", "close"])
    def test_a_broken_tracer_changes_no_bit_of_the_training(
        self, tmp_path, monkeypatch, caplog, method
    ):
        """A fault of ours is a line in the log, once."""
        saves = {"enable_checkpointing": True}
        before, _ = untraced(tmp_path / "untraced", **saves)
        whole = getattr(Tracer, method)
        monkeypatch.setattr(Tracer, method, broken)
        callback, module = MoETraceCallback(every=2), Net()
        fit(module, tmp_path / "traced", callbacks=[callback], **saves)
        assert same(left(module), before)
        said = [record.getMessage() for record in caplog.records if "a fault" in record.message]
        assert said == ["moetrace failed and training goes on: RuntimeError: a fault of ours"]
        monkeypatch.setattr(Tracer, method, whole)
        callback.tracer.close()

    def test_no_router_is_an_error_of_use(self, tmp_path):
        """A module without a router is refused when training begins, with what came near."""
        with pytest.raises(moetrace.NoRouterFound, match=r"router \(Linear\)"):
            fit(Dense(), tmp_path, callbacks=[MoETraceCallback()])

    def test_no_router_may_be_let_pass(self, tmp_path, caplog):
        """on_missing="warn" trains untraced."""
        fit(Dense(), tmp_path, callbacks=[MoETraceCallback(on_missing="warn")])
        assert "training goes on untraced: found no router in Dense" in caplog.text


class Dense(pl.LightningModule):
    """A module without experts."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(12, 3)

    def training_step(self, rows, index):
        """Any loss."""
        return self.router(rows["input_ids"].float()).sum()

    def configure_optimizers(self):
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestCommandLine:
    def test_is_built_from_class_path_and_init_args(self):
        """LightningCLI builds callbacks so: the settings of a YAML file are keyword arguments."""
        from lightning.pytorch.cli import instantiate_class

        callback = instantiate_class(
            (),
            {
                "class_path": "moetrace_adapters.lightning.MoETraceCallback",
                "init_args": {"run": "runs/a", "every": 5, "sinks": ["console"], "alerts": None},
            },
        )
        assert callback.state_dict()["run"] == "runs/a"

    def test_every_argument_has_a_name_a_type_and_a_default(self):
        """What a parser needs of a constructor: no *args, no **kwargs, resolvable annotations."""
        parameters = inspect.signature(MoETraceCallback).parameters.values()
        types = typing.get_type_hints(MoETraceCallback.__init__)
        for parameter in parameters:
            assert parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            assert parameter.default is not parameter.empty
            assert parameter.name in types
