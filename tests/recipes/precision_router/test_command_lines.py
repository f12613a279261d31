import subprocess
import sys
from pathlib import Path

import example_train_router
import pytest
import quantize
import torch
import train_layerwise_router
from layerwise import options as command_lines
from layerwise.nested_model import load_nested
from layerwise.preparation import validation_examples
from layerwise.tiny_model import tiny_llama

from tests.recipes.precision_router import made

RECIPE = Path(train_layerwise_router.__file__).parent
SMALL = ["--seq_len", "16", "--num_examples", "4", "--num_epochs", "1", "--pool", "prefix:4"]


class TestTrainingParser:
    def test_the_documented_defaults_hold(self):
        """S4-01, S4-02, S4-03, S4-04: the path alone is required; the rest is as documented."""
        options = vars(command_lines.training_parser().parse_args(["/a/model"]))
        documented = {
            "model_path": "/a/model",
            "dataset": "c4",
            "seq_len": 512,
            "num_examples": 1000,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "num_epochs": 10,
            "weight_ce": 0.7,
            "weight_precision": 0.3,
            "save_dir": "router_checkpoints",
            "device": None,
            "random_state": 42,
            "trust_remote_code": False,
            "precisions": None,
            "pool": "prefix:64",
            "objective": "weighted",
            "precision_scale": 10.0,
        }
        assert {name: options[name] for name in documented} == documented

    def test_the_documented_commands_parse(self):
        """S4-01, S4-05: every documented option takes a value of its kind."""
        words = "m --dataset c4 --seq_len 512 --num_examples 1000 --batch_size 4 --num_epochs 10"
        words += " --weight_ce 0.7 --weight_precision 0.3 --learning_rate 1e-4 --save_dir s"
        words += " --device cpu --random_state 1 --trust_remote_code --precisions 3 4 5"
        options = command_lines.training_parser().parse_args(words.split())
        assert (options.precisions, options.trust_remote_code) == ([3, 4, 5], True)

    def test_the_path_is_required(self, capsys):
        """S4-01: without a model nothing starts."""
        with pytest.raises(SystemExit):
            command_lines.training_parser().parse_args([])
        assert "model_path" in capsys.readouterr().err

    @pytest.mark.parametrize("words", ["--seq_len 0", "--learning_rate -1", "--weight_ce -0.1"])
    def test_values_that_mean_nothing_are_refused(self, words, capsys):
        """S4-17: the option and what was found are named."""
        with pytest.raises(SystemExit):
            command_lines.training_parser().parse_args(["m", *words.split()])
        assert words.split()[0] in capsys.readouterr().err

    def test_a_tenth_more_is_for_validation(self):
        """S4-19: validation pieces come on top of the examples."""
        options = command_lines.training_parser().parse_args(["m"])
        assert validation_examples(options) == 100

    def test_the_example_is_the_same_on_less(self):
        """S4-05: 256 tokens, 500 examples, batches of 2, 5 epochs, a folder of its own."""
        options = command_lines.example_parser().parse_args(["--model_path", "m"])
        assert (options.seq_len, options.num_examples) == (256, 500)
        assert (options.batch_size, options.num_epochs) == (2, 5)
        assert options.save_dir == "example_router_checkpoints"


class TestPrograms:
    def test_all_of_them_stand_in_the_recipe(self):
        """S4-24: the files that are named, and those beside them."""
        named = {"train_layerwise_router.py", "example_train_router.py"}
        named |= {"README_router_training.md", "README.md", "quantize.py", "sweep_router.py"}
        named |= {"evaluate_router_vs_quantized.py", "LayerwiseQuantizeForCausalLM.py"}
        assert named <= {path.name for path in RECIPE.iterdir()}

    def test_a_program_runs_from_any_folder(self, tmp_path):
        """S4-01: called by its path it finds its own modules; --help needs no torch."""
        told = subprocess.run(
            [sys.executable, "-X", "importtime", RECIPE / "train_layerwise_router.py", "--help"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "path to the quantized model directory" in told.stdout
        assert " torch" not in told.stderr

    def test_the_example_trains(self, model_folder, text, tmp_path):
        """S4-05: it runs as documented, and leaves the files of a training."""
        words = ["--model_path", str(model_folder), "--dataset", str(text), *SMALL]
        assert example_train_router.main([*words, "--save_dir", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / "best_router_checkpoint.pt").exists()

    def test_it_works_without_a_gpu(self, model_folder, text, tmp_path, monkeypatch, caplog):
        """S4-04: where there is none the CPU is taken, and said so."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        caplog.set_level("INFO")
        words = [str(model_folder), "--dataset", str(text), *SMALL]
        assert train_layerwise_router.main([*words, "--save_dir", str(tmp_path / "out")]) == 0
        assert "Model loaded successfully. Device: cpu" in caplog.text

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["nowhere"], "found no quantized model in nowhere; MODEL_PATH is a folder"),
            (["MODEL", "--precisions", "2"], "supports [3, 4, 5, 6, 7, 8]"),
            (["MODEL", "--precisions", "4"], "leaves nothing to choose; give two or more"),
            (["MODEL", "--dataset", "c5"], "--dataset is one of c4, wikitext2, ptb, pileval"),
            (["MODEL", "--device", "tpu9"], "found no --device tpu9"),
            (["MODEL", "--start_precision", "2"], "found --start_precision 2; take one of"),
        ],
    )
    def test_trouble_is_one_line_and_exit_code_1(self, model_folder, words, told, caplog, tmp_path):
        """S4-17: each error names the option to change."""
        words = [str(model_folder) if word == "MODEL" else word for word in words]
        assert train_layerwise_router.main([*words, "--save_dir", str(tmp_path)]) == 1
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert told in record.getMessage()


class TestQuantize:
    def test_it_stores_a_local_model_and_its_tokenizer(self, tmp_path, caplog):
        """S4-23: the recipe makes its own quantised model of what transformers saved."""
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        model = tiny_llama(width=16, layers=1)
        model.save_pretrained(tmp_path / "model")
        words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
        out = str(tmp_path / "out")
        assert quantize.main([str(tmp_path / "model"), out, "--precisions", "3", "4"]) == 0
        base, precisions = load_nested(out)
        assert precisions == [3, 4]
        assert base.model.embed_tokens.weight.equal(model.model.embed_tokens.weight)
        assert (tmp_path / "out" / "tokenizer.json").exists()

    def test_a_model_that_is_nowhere_is_said_plainly(self, tmp_path, caplog, monkeypatch):
        """S4-17: no folder and no name: what was looked for and what to give."""
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert quantize.main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
        assert "found no model" in caplog.text
        assert "give a folder with config.json and weights" in caplog.text

    def test_precisions_beyond_the_stored_are_refused(self, tmp_path, caplog):
        """S4-17: 8 bits are stored; nine cannot be read."""
        assert quantize.main(["tiny-random", str(tmp_path), "--precisions", "3", "9"]) == 1
        assert "found --precisions [3, 9]; take some from 2 to 8" in caplog.text

    def test_a_tiny_model_can_be_taught(self, tmp_path, caplog):
        """S4-23: tiny-random needs nothing at all, and learns from this machine's sources."""
        caplog.set_level("INFO")
        words = ["tiny-random", str(tmp_path / "out"), "--teach_steps", "2"]
        assert quantize.main(words) == 0
        assert "Taught on 2 steps of Python sources: 5." in caplog.text
        model = made.loaded(tmp_path / "out")
        assert len(model.layers) == 4
