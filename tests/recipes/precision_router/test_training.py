import json
import logging
import re

import pytest
import torch
from layerwise import checkpoint, training
from layerwise.errors import RecipeError
from layerwise.program import log_to_console, run_program
from layerwise.training import train_router

import moetrace
from tests.recipes.precision_router import made


@pytest.fixture(scope="module")
def trained(model_folder, text, tmp_path_factory):
    """A training of two epochs at the default weights, its folder and its log."""
    folder = tmp_path_factory.mktemp("trained")
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")
    log = logging.getLogger("layerwise")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        torch.set_num_threads(1)
        best = train_router(made.options(model_folder, folder, text))
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    return best.parent, lines


@pytest.fixture
def console():
    """Whatever a program sets the log to, it is put back."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)
    logging.getLogger("layerwise").setLevel(logging.NOTSET)


class TestFiles:
    def test_there_is_a_checkpoint_per_epoch_the_best_and_the_history(self, trained):
        """S4-12: the documented names, in --save_dir, beside what moetrace recorded."""
        assert sorted(path.name for path in trained[0].iterdir()) == [
            "best_router_checkpoint.pt",
            "router_checkpoint_epoch_1.pt",
            "router_checkpoint_epoch_2.pt",
            "routing",
            "training_history.json",
        ]

    def test_every_checkpoint_loads_as_plain_weights(self, trained):
        """S4-13: the documented keys, and nothing that weights_only=True refuses."""
        for path in sorted(trained[0].glob("*.pt")):
            saved = torch.load(path)
            assert {
                "epoch", "model_state_dict", "optimizer_state_dict", "metrics", "config"
            } <= set(saved)  # fmt: skip
            assert all(".router." in name for name in saved["model_state_dict"])
            assert json.loads(json.dumps([saved["config"], saved["metrics"]], allow_nan=False))

    def test_a_checkpoint_holds_routers_and_no_model(self, trained):
        """S4-27: 38,988 router weights of 4 bytes, twice more for AdamW, and 32 KiB at most."""
        size = (trained[0] / "router_checkpoint_epoch_2.pt").stat().st_size
        assert 3 * 4 * 38988 < size < 3 * 4 * 38988 + 2**15

    def test_the_best_is_the_one_with_the_lowest_validation_loss(
        self, model_folder, text, tmp_path, monkeypatch
    ):
        """S4-12: of validation losses 3, 1 and 2 the second epoch is the best, and stays it."""
        losses = iter([3.0, 1.0, 2.0])
        monkeypatch.setattr(
            training._Loop, "_validate", lambda self: training.Means(next(losses), 1.0, 0.0, 3.0)
        )
        path = train_router(made.options(model_folder, tmp_path, text, "--num_epochs", "3"))
        assert torch.load(path)["epoch"] == 2
        assert torch.load(path.with_name("router_checkpoint_epoch_3.pt"))["best_loss"] == 1.0

    def test_validation_is_of_the_choices_themselves(self, model_folder, text, tmp_path):
        """S4-19: 8 bits everywhere are the loss of 8 bits, where the mixture expects 6.8."""
        path = train_router(made.options(model_folder, tmp_path, text, "--num_epochs", "1"))
        metrics = torch.load(path)["metrics"]
        assert metrics["val_avg_precision"] == 8.0
        assert metrics["avg_precision"] == pytest.approx(6.79, abs=0.02)

    def test_without_validation_the_training_loss_decides(self, model_folder, text, tmp_path):
        """S4-12: --val_examples 0 leaves no val_ keys, and the best by the loss."""
        words = ("--val_examples", "0", "--learning_rate", "0.01")
        path = train_router(made.options(model_folder, tmp_path, text, *words))
        history = checkpoint.read_history(path.parent / "training_history.json")
        assert not any(name.startswith("val_") for epoch in history for name in epoch)
        losses = [epoch["total_loss"] for epoch in history]
        assert torch.load(path)["epoch"] == 1 + losses.index(min(losses))


class TestHistory:
    def test_it_has_the_documented_keys_for_every_epoch(self, trained):
        """S4-14: epoch, total_loss, ce_loss, precision_loss, avg_precision; train_ and val_ too."""
        history = json.loads((trained[0] / "training_history.json").read_text())
        assert [epoch["epoch"] for epoch in history] == [1, 2]
        for name in ("total_loss", "ce_loss", "precision_loss", "avg_precision"):
            assert all(epoch[name] == epoch[f"train_{name}"] for epoch in history)
            assert all(isinstance(epoch[f"val_{name}"], float) for epoch in history)

    def test_its_total_follows_the_formula(self, trained):
        """S4-15: Total is 0.7 * CE + 0.3 * Prec, in training and in validation."""
        for epoch in checkpoint.read_history(trained[0] / "training_history.json"):
            for kind in ("train", "val"):
                total = 0.7 * epoch[f"{kind}_ce_loss"] + 0.3 * epoch[f"{kind}_precision_loss"]
                assert epoch[f"{kind}_total_loss"] == pytest.approx(total, rel=1e-5)
                scaled = 10 * (epoch[f"{kind}_avg_precision"] - 3) / 5
                assert epoch[f"{kind}_precision_loss"] == pytest.approx(scaled, rel=1e-5)

    @pytest.mark.parametrize("prefix", ["", "train_"])
    def test_either_spelling_is_read(self, prefix, tmp_path):
        """S4-14: a history with one spelling of the keys reads as one with both."""
        path = tmp_path / "training_history.json"
        path.write_text(json.dumps([{"epoch": 1, f"{prefix}ce_loss": 2.5}]))
        (epoch,) = checkpoint.read_history(path)
        assert epoch["ce_loss"] == epoch["train_ce_loss"] == 2.5

    def test_what_is_not_finite_is_null(self, tmp_path):
        """S4-14: the file is JSON that every reader takes."""
        checkpoint.write_json({"a": [float("nan"), 1.0], "b": float("inf")}, tmp_path / "x.json")
        text = (tmp_path / "x.json").read_text()
        assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.0], "b": None}


class TestLog:
    def test_the_documented_lines_come_in_their_order(self, trained):
        """S4-25: configuration, model, data, optimizer, epochs, files and the end."""
        folder, lines = trained
        told = "\n".join(line for line in lines if not line.startswith("DEBUG"))
        expected = [
            r"INFO Starting router training...",
            r"INFO Training configuration:",
            r"INFO   - Dataset: .*text.txt",
            r"INFO   - Sequence length: 16",
            r"INFO   - Number of examples: 8",
            r"INFO   - Batch size: 4",
            r"INFO   - Learning rate: 0.0001",
            r"INFO   - Number of epochs: 2",
            r"INFO   - CE weight: 0.7",
            r"INFO   - Precision weight: 0.3",
            r"INFO   - Available precisions: \[3, 4, 5, 6, 7, 8\]",
            r"INFO Loading model from .*quantized.*",
            r"INFO Model loaded successfully. Device: (cpu|cuda)",
            r"INFO Available precisions: \[3, 4, 5, 6, 7, 8\]",
            r"INFO Number of trainable parameters: 38988",
            r"INFO Loading dataset: .*text.txt",
            r"INFO Fetching dataset: .*text.txt",
            r"INFO Sampling 8 samples of length 16 from .*text.txt...",
            r"INFO Dataset loaded: 8 samples, batch size: 4",
            r"INFO Optimizer setup: AdamW with lr=0.0001",
            r"INFO Epoch 1/2",
            r"INFO Epoch 1 Results:",
            r"INFO   - Total Loss: \d+\.\d{4}",
            r"INFO   - CE Loss: \d+\.\d{4}",
            r"INFO   - Precision Loss: \d+\.\d{4}",
            r"INFO   - Average Precision: \d\.\d\d",
            r"INFO Checkpoint saved: .*router_checkpoint_epoch_1.pt",
            r"INFO New best model saved: .*best_router_checkpoint.pt",
            r"INFO Epoch 2/2",
            r"INFO Training completed!",
            r"INFO Best loss: \d+\.\d{4}",
            f"INFO Checkpoints saved in: {re.escape(str(folder))}",
        ]
        assert re.search("\n(?:.*\n)*?".join(expected), told)

    def test_collapse_is_predicted_before_the_first_epoch(self, trained):
        """S4-06: break-even and cross-entropies are printed, and the default weights warned of."""
        lines = trained[1]
        start = lines.index("INFO Epoch 1/2")
        before = "\n".join(lines[:start])
        assert "INFO Break-even: one bit has to save 0.857 nats to pay" in before
        assert re.search(r"INFO Cross-entropy at 3 bits: \d\.\d{4}, at 8 bits: \d\.\d{4}", before)
        assert "WARNING these weights will collapse to 3 bits in every layer" in before

    def test_a_target_is_not_warned_of(self, model_folder, text, tmp_path, caplog):
        """S4-06: --objective target has no collapse to predict, and ends at its target."""
        words = ["--objective", "target", "--target_precision", "4", "--learning_rate", "0.01"]
        with caplog.at_level(logging.INFO):
            path = train_router(made.options(model_folder, tmp_path, text, *words))
        assert "will collapse" not in caplog.text
        assert torch.load(path)["metrics"]["val_avg_precision"] == pytest.approx(4, abs=0.5)

    def test_there_is_a_line_per_batch_at_debug(self, trained):
        """S4-18: with DEBUG logging every batch has a line."""
        batches = [line for line in trained[1] if line.startswith("DEBUG epoch 1, batch")]
        assert [line.split(":")[0] for line in batches] == [
            "DEBUG epoch 1, batch 1/2",
            "DEBUG epoch 1, batch 2/2",
        ]

    def test_lines_and_progress_have_the_documented_form(
        self, console, model_folder, text, tmp_path, capsys, monkeypatch
    ):
        """S4-15: [12:34:56 | INFO] lines, and a bar with Loss, CE, Prec and AvgPrec."""
        monkeypatch.setattr(logging.root, "handlers", [])  # as in a program of its own
        log_to_console()
        options = made.options(model_folder, tmp_path, text, "--num_epochs", "1")
        assert run_program(lambda: train_router(options)) == 0
        shown = capsys.readouterr().err
        assert re.search(r"^\[\d\d:\d\d:\d\d \| INFO\] Epoch 1 Results:$", shown, re.MULTILINE)
        figures = r"Loss: \d+\.\d{4}, CE: \d+\.\d{4}, Prec: \d+\.\d{4}, AvgPrec: \d\.\d\d\]"
        assert re.search(rf"Epoch 1/1: 100%.* 2/2 \[.*, {figures}", shown)
        assert "batch 1/2" not in shown  # DEBUG is quiet unless asked for

    def test_a_thousand_samples_are_250_batches(self, model_folder, text, tmp_path, monkeypatch):
        """S4-25: validation pieces come on top: 1000 samples at batch size 4 make 250 batches."""
        options = made.options(model_folder, tmp_path, text, "--num_examples", "100")
        pieces = training.load_pieces(options, made.loaded(model_folder))
        loop = training._Loop(options, made.loaded(model_folder), None, pieces)
        assert (len(pieces.train), loop.batches) == (100, 25)


class TestRouting:
    def test_moetrace_recorded_every_choice(self, trained):
        """S4-22: 8 sequences in each of 2 layers and epochs, 4 at each validation."""
        run = moetrace.open_run(trained[0] / "routing")
        assert run.counts().sum(axis=(0, 2)).tolist() == [16, 16]
        assert run.counts(phase="eval").sum(axis=(0, 2)).tolist() == [8, 8]

    def test_each_epoch_says_what_each_layer_chose(self, trained):
        """S4-22: distribution, average and entropy per layer: a new router is sure of nothing."""
        told = [line for line in trained[1] if "base.model.layers.0: " in line]
        assert re.fullmatch(
            r"INFO   - base.model.layers.0: 8 bit 100 %; average 8.00, expected 6.\d\d, "
            r"entropy 1.\d\d nats",
            told[0],
        )
        assert any("all 2 layers at 8 bit" in line for line in trained[1])

    def test_a_collapse_to_the_lowest_precision_is_warned_of(
        self, model_folder, text, tmp_path, caplog
    ):
        """S4-22: the default weights, trained fast, end at 3 bits, as predicted, with a warning."""
        words = ["--learning_rate", "0.05", "--num_examples", "32", "--num_epochs", "4"]
        options = made.options(model_folder, tmp_path, text, *words)
        path = train_router(options)
        warnings = [item.getMessage() for item in caplog.records if item.levelname == "WARNING"]
        assert "all 2 layers at 3 bit: the routers do not look at the text" in warnings
        assert torch.load(path)["metrics"]["val_avg_precision"] == 3.0
        events = moetrace.open_run(path.parent / "routing").events()
        alerts = [moetrace.Alert.from_event(event) for event in events if event["kind"] == "alert"]
        assert {alert.kind for alert in alerts} >= {"routing_collapse"}


class TestResume:
    def test_it_goes_on_as_if_it_had_not_stopped(self, model_folder, text, tmp_path):
        """S4-12: one epoch and then another are two epochs, weight by weight."""
        words = ("--learning_rate", "0.01")
        once = train_router(made.options(model_folder, tmp_path / "once", text, *words)).parent
        again = made.options(model_folder, tmp_path / "twice", text, *words, "--num_epochs", "1")
        train_router(again)
        torch.randn(7)  # what draws in between does not matter
        again.num_epochs, again.resume = 2, True
        twice = train_router(again).parent
        name = "router_checkpoint_epoch_2.pt"
        one, other = torch.load(once / name), torch.load(twice / name)
        for key, value in one["model_state_dict"].items():
            same = other["model_state_dict"][key]
            assert value.equal(same) if isinstance(value, torch.Tensor) else value == same
        assert one["history"] == other["history"]
        run = moetrace.open_run(twice / "routing")
        assert run.steps().tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]]

    def test_other_options_are_refused(self, model_folder, text, tmp_path):
        """S4-17: a training that would not be the same one names the option."""
        train_router(made.options(model_folder, tmp_path, text, "--num_epochs", "1"))
        options = made.options(model_folder, tmp_path, text, "--resume", "--weight_ce", "0.5")
        with pytest.raises(RecipeError, match=r"a training with --weight_ce 0\.7"):
            train_router(options)

    def test_nothing_to_resume_starts_anew(self, model_folder, text, tmp_path, caplog):
        """S4-12: --resume can stand in a script from the first run on."""
        options = made.options(model_folder, tmp_path, text, "--resume", "--num_epochs", "1")
        with caplog.at_level(logging.INFO):
            train_router(options)
        assert "starting anew" in caplog.text


class TestTrouble:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            MemoryError(),
        ],
    )
    def test_out_of_memory_names_the_remedy(self, error, caplog):
        """S4-17: a smaller batch or sequence."""

        def work():
            raise error

        assert run_program(work) == 1
        assert "take a smaller --batch_size or --seq_len" in caplog.text

    def test_an_error_of_ours_is_not_hidden(self):
        """S4-17: what no option can mend is raised as it is."""

        def work():
            raise RuntimeError("shapes do not match")

        with pytest.raises(RuntimeError, match="shapes do not match"):
            run_program(work)

    def test_a_loss_that_is_not_finite_stops_the_training(
        self, model_folder, text, tmp_path, monkeypatch
    ):
        """S4-17: batch and option are named; no checkpoint holds NaN."""
        monkeypatch.setattr(
            training, "next_token_loss", lambda logits, *rest: logits.sum() * float("nan")
        )
        with pytest.raises(
            RecipeError, match=r"found loss nan in batch 1 of epoch 1.*--learning_rate"
        ):
            train_router(made.options(model_folder, tmp_path, text))
        assert not list((tmp_path / "out").glob("*.pt"))

    def test_no_checkpoint_is_said_plainly(self, tmp_path):
        """S4-17: a file that is not there, and one that is something else."""
        with pytest.raises(RecipeError, match=r"found no checkpoint .*nothing\.pt"):
            checkpoint.load_checkpoint(tmp_path / "nothing.pt")
        (tmp_path / "x.pt").write_bytes(b"no zip")
        with pytest.raises(RecipeError, match="which is no checkpoint of a router"):
            checkpoint.load_checkpoint(tmp_path / "x.pt")
