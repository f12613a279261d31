"""What an experiment leaves in its folder, held against the run it came from."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import moetrace
from configs.config import ExperimentConfig
from moetrace.gradient_stats import norm_of
from run_experiment import run_single_experiment
from src import experiment, training
from src.base_model import load_model, tiny_model
from src.errors import ExperimentError, is_out_of_memory, out_of_memory_advice
from src.gradient_files import write_gradient_files
from tests.recipes.lora_sensitivity.made import short_config

STEM = "gradient_analysis"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One experiment on all kinds of modules: its settings, folder, and what it returned."""
    config = short_config(tmp_path_factory.mktemp("lora"), analysis__save_format="json")
    result = run_single_experiment(config, quiet=True)
    return config, config.results_dir, result


@pytest.fixture(scope="module")
def rows(done):
    """The columns of each CSV file, by the part of its name."""
    _, folder, _ = done
    return {
        kind: table(folder / f"{STEM}.{kind}.csv")
        for kind in ("group_norms", "layer_norms", "normalized_norms")
    }


def table(path: Path) -> dict[str, list[float]]:
    """The columns of a CSV file."""
    with path.open(newline="") as file:
        header, *lines = list(csv.reader(file))
    return {name: [float(line[at]) for line in lines] for at, name in enumerate(header)}


def summary_of(folder: Path) -> dict:
    """What results_summary.json holds."""
    return json.loads((folder / "results_summary.json").read_text())


class TestFiles:
    def test_every_documented_file_is_there(self, done):
        """S3-30 to S3-42: the documented names, and no other."""
        _, folder, _ = done
        assert {path.name for path in folder.iterdir()} == {
            *("config.json", "training_loss.png", f"{STEM}.group_norms.csv", "run"),
            *(f"{STEM}.layer_norms.csv", f"{STEM}.normalized_norms.csv", f"{STEM}.json"),
            *(f"{STEM}.summary.json", "gradient_norms.png", "layer_heatmap.png"),
            *("layer_comparison.png", "gradient_evolution.png", "evaluation_results.json"),
            *("results_summary.json", "checkpoints", "final_model"),
        }

    def test_the_configuration_comes_back(self, done):
        """S3-30: config.json holds every setting."""
        config, folder, _ = done
        record = json.loads((folder / "config.json").read_text())
        assert ExperimentConfig.from_dict(record) == config

    def test_no_json_holds_what_json_has_not(self, done):
        """S3-45: NaN and Infinity are in no file."""
        _, folder, _ = done

        def refuse(name):
            raise AssertionError(name)

        files = [file for file in folder.rglob("*.json") if "checkpoints" not in file.parts]
        assert len(files) >= 6
        for file in files:
            json.loads(file.read_text(), parse_constant=refuse)

    def test_everything_written_loads_without_unpickling(self, done):
        """``torch.load(weights_only=True)`` reads every file that torch wrote."""
        _, folder, _ = done
        files = [file for file in folder.rglob("*") if file.suffix in (".pt", ".pth", ".bin")]
        assert {file.name for file in files} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
        for file in files:
            torch.load(file, weights_only=True)


class TestGradients:
    def test_the_headers(self, rows):
        """S3-32, S3-33: the documented columns, a pair of them per layer."""
        assert list(rows["group_norms"]) == [
            *("step", "embed_norm", "attention_norm", "mlp_norm", "lm_head_norm", "total_norm")
        ]
        assert list(rows["layer_norms"]) == [
            "step",
            *(f"layer_{at}_{part}" for at in range(4) for part in ("attention", "mlp")),
        ]

    def test_squares_of_groups_add_up_to_the_total(self, rows):
        """S3-32: no group is counted twice or left out; all of them have a gradient."""
        norms = rows["group_norms"]
        names = ("embed_norm", "attention_norm", "mlp_norm", "lm_head_norm")
        for at in range(6):
            squares = sum(norms[name][at] ** 2 for name in names)
            assert squares == pytest.approx(norms["total_norm"][at] ** 2, rel=1e-6)
            assert all(norms[name][at] > 0 for name in names)

    @pytest.mark.parametrize("part", ["attention", "mlp"])
    def test_squares_of_layers_add_up_to_the_group(self, rows, part):
        """S3-33: the layers of a part are the part."""
        for at in range(6):
            squares = sum(rows["layer_norms"][f"layer_{n}_{part}"][at] ** 2 for n in range(4))
            group = rows["group_norms"][f"{part}_norm"][at]
            assert squares == pytest.approx(group**2, rel=1e-6)

    def test_it_is_the_norm_that_the_trainer_logs_before_it_clips(self, done, rows):
        """Once per optimizer step, before clipping, over all micro-batches."""
        _, folder, _ = done
        state = json.loads((folder / "checkpoints/checkpoint-6/trainer_state.json").read_text())
        logged = [row["grad_norm"] for row in state["log_history"] if "grad_norm" in row]
        assert max(logged) > 1.0  # so that clipping to 1 would show
        assert rows["group_norms"]["step"] == [1, 2, 3, 4, 5, 6]
        assert rows["group_norms"]["total_norm"] == pytest.approx(logged, rel=1e-5)

    def test_the_summary_is_of_the_table(self, done, rows):
        """S3-34: mean, std, max, min of each column; peak_step is the row of its maximum."""
        _, folder, _ = done
        summary = json.loads((folder / f"{STEM}.summary.json").read_text())
        assert list(summary) == ["embed", "attention", "mlp", "lm_head", "total"]
        for group, told in summary.items():
            norms = rows["group_norms"][f"{group}_norm"]
            mean = sum(norms) / 6
            assert told["mean"] == pytest.approx(mean)
            assert told["std"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in norms) / 6))
            assert (told["max"], told["min"]) == (max(norms), min(norms))
            assert told["peak_step"] == norms.index(max(norms)) + 1

    def test_the_normalised_norms_by_hand(self, rows):
        """Beside the raw norm: over the root of the size, and over alpha / sqrt(r) = 32 / 2."""
        raw, other = rows["group_norms"], rows["normalized_norms"]
        # 4 blocks of 3 modules, each with factors of 4 x 32 and 4 x 88
        mlp = 4 * 3 * (4 * 32 + 4 * 88)
        for at in range(6):
            assert other["mlp_rms"][at] == pytest.approx(raw["mlp_norm"][at] / math.sqrt(mlp))
            assert other["total_scale_free"][at] == pytest.approx(raw["total_norm"][at] / 16)

    def test_the_two_factors_apart(self, done, rows):
        """In the first step lora_A of a linear layer has no gradient, and lora_B has one."""
        _, folder, _ = done
        first = next(iter(moetrace.open_run(folder / "run").windows()))
        linear = [item for item in first.gradients if item.group in ("attention", "mlp")]
        assert norm_of([item for item in linear if item.part == "lora_A"]) == 0.0
        assert norm_of([item for item in linear if item.part == "lora_B"]) > 0.0
        factors = rows["normalized_norms"]
        total = math.hypot(factors["lora_A_norm"][0], factors["lora_B_norm"][0])
        assert total == pytest.approx(rows["group_norms"]["total_norm"][0])

    def test_the_same_columns_as_json(self, done, rows):
        """S3-62: --save_format json writes what the CSV files hold."""
        _, folder, _ = done
        assert json.loads((folder / f"{STEM}.json").read_text()) == rows


class TestModel:
    def test_the_best_adapter_gives_the_same_logits_again(self, done):
        """S3-42: final_model is the best checkpoint's adapter, and reloads to the same logits."""
        _, folder, result = done
        assert {path.name for path in (folder / "final_model").iterdir()} >= {
            *("adapter_config.json", "adapter_model.safetensors")
        }
        best = folder / "checkpoints" / f"checkpoint-{result['summary']['best_step']}"
        ids = torch.arange(3, 40).unsqueeze(0)
        logits = []
        for path in (folder / "final_model", best):
            with torch.no_grad():
                logits.append(PeftModel.from_pretrained(tiny_model(), path).eval()(ids).logits)
        with torch.no_grad():
            base = tiny_model().eval()(ids).logits
        assert torch.equal(*logits)
        assert (logits[0] - base).abs().max() > 1e-4

    def test_checkpoints_are_the_best_and_the_last(self, done):
        """S3-41: with a validation at most two, the lowest eval_loss among them."""
        _, folder, result = done
        kept = {path.name for path in (folder / "checkpoints").iterdir()}
        losses = dict(result["summary"]["losses"]["eval"])
        best = min(losses, key=losses.__getitem__)
        assert list(losses) == [2, 4, 6]
        assert best != 6
        assert kept == {f"checkpoint-{best}", "checkpoint-6"}
        assert result["summary"]["best_step"] == best

    def test_the_checkpoint_holds_the_adapter_alone(self, done):
        """S3-04: of ``all`` the adapters of the embedding are saved, and not the embedding."""
        _, folder, _ = done
        for place in ("final_model", "checkpoints/checkpoint-6"):
            names = set(load_file(folder / place / "adapter_model.safetensors"))
            assert any("lora_embedding_A" in name for name in names)
            assert all("lora_" in name for name in names)


class TestSummary:
    def test_it_is_what_the_call_returns(self, done):
        """S3-40, S3-51: ``summary`` equals results_summary.json."""
        _, folder, result = done
        assert result["summary"] == summary_of(folder)
        assert result["results_dir"] == str(folder)

    def test_the_scores_have_the_documented_keys(self, done):
        """S3-39: five scores from 0 to 1 and the number of prompts."""
        _, folder, _ = done
        scores = json.loads((folder / "evaluation_results.json").read_text())
        assert scores["num_samples"] == 3
        for name in ("bleu", "rouge1", "rouge2", "rougeL", "meteor"):
            assert 0 <= scores[name] <= 1
        assert scores["variants"]["generation"] == "greedy"


class TestOtherWays:
    @pytest.fixture(autouse=True)
    def _without_pictures(self, monkeypatch):
        """Pictures have tests of their own."""
        monkeypatch.setattr(experiment, "_draw", lambda *_, **__: None)

    def test_without_validation_no_checkpoint_and_the_last_adapter(self, tmp_path):
        """S3-41: without a validation there are no checkpoints, and final_model is the last."""
        config = short_config(tmp_path, data__validation_split=0.0, training__max_steps=1)
        config.evaluation.enabled = False
        summary = run_single_experiment(config, quiet=True)["summary"]
        folder = config.results_dir
        assert not list((folder / "checkpoints").glob("*"))
        assert (folder / "final_model" / "adapter_model.safetensors").is_file()
        assert (summary["final_model"], summary["best_step"]) == ("last", None)
        assert summary["losses"]["eval"] == []

    def test_without_scores_the_summary_says_so(self, tmp_path):
        """S3-17, S3-26, S3-40: --no_eval leaves no scores, and the reason in the summary."""
        config = short_config(tmp_path, training__max_steps=1, evaluation__enabled=False)
        summary = run_single_experiment(config, quiet=True)["summary"]
        assert summary["evaluation"] == {"status": "off", "reason": "--no_eval"}
        assert not (config.results_dir / "evaluation_results.json").exists()

    def test_scores_that_fail_cost_no_training(self, tmp_path, monkeypatch):
        """S3-40: the summary is written with the reason, and everything else is there."""
        monkeypatch.setattr(experiment, "evaluate", lambda *_, **__: 1 / 0)
        config = short_config(tmp_path, training__max_steps=1)
        summary = run_single_experiment(config, quiet=True)["summary"]
        assert summary == summary_of(config.results_dir)
        assert summary["evaluation"]["status"] == "failed"
        assert "ZeroDivisionError: division by zero" in summary["evaluation"]["reason"]

    def test_rows_of_several_steps_and_no_layers(self, rows, tmp_path):
        """S3-15, S3-16: --log_frequency 2 gives the root mean square of two steps per row."""
        two = short_config(tmp_path, evaluation__enabled=False)
        two.analysis.log_frequency, two.analysis.layer_norms = 2, False
        run_single_experiment(two, quiet=True)
        one = rows["group_norms"]["total_norm"]
        both = table(two.results_dir / f"{STEM}.group_norms.csv")
        assert both["step"] == [2, 4, 6]
        wanted = [math.sqrt((one[at] ** 2 + one[at + 1] ** 2) / 2) for at in (0, 2, 4)]
        assert both["total_norm"] == pytest.approx(wanted)
        assert not (two.results_dir / f"{STEM}.layer_norms.csv").exists()

    def test_the_same_seed_gives_the_same_bytes_and_replaces_what_was_there(self, done, tmp_path):
        """S3-13, S3-59: the same norms, byte for byte; another seed gives others."""
        _, folder, _ = done
        name = f"{STEM}.group_norms.csv"
        other = short_config(tmp_path, training__seed=43, evaluation__enabled=False)
        other.training.max_steps = 8  # more than those that come after it
        run_single_experiment(other, quiet=True)
        found = (other.results_dir / name).read_bytes()
        assert found != (folder / name).read_bytes()
        (other.results_dir / "evaluation_results.json").write_text("{}")
        (other.results_dir / "notes.txt").write_text("mine")
        run_single_experiment(short_config(tmp_path, evaluation__enabled=False), quiet=True)
        assert (other.results_dir / name).read_bytes() == (folder / name).read_bytes()
        assert not (other.results_dir / "evaluation_results.json").exists()
        assert not (other.results_dir / "checkpoints" / "checkpoint-8").exists()
        assert (other.results_dir / "notes.txt").read_text() == "mine"

    def test_an_interrupted_one_goes_on_to_the_same_end(self, done, tmp_path, monkeypatch):
        """With ``resume`` norms, losses and adapter are those of a training that never stopped."""
        _, whole, _ = done
        broken = short_config(tmp_path, evaluation__enabled=False)

        class Stop(Exception):
            pass

        def stop(trainer, *arguments, **named):
            if trainer.state.global_step == 4:
                raise Stop
            return step(trainer, *arguments, **named)

        step = training.Trainer.training_step
        with monkeypatch.context() as patch:
            patch.setattr(training.Trainer, "training_step", stop)
            with pytest.raises(Stop):
                run_single_experiment(broken, quiet=True)
        assert not (broken.results_dir / "results_summary.json").exists()
        done_again = []

        def counted(trainer, *arguments, **named):
            done_again.append(trainer.state.global_step)
            return step(trainer, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(training.Trainer, "training_step", counted)
            resumed = run_single_experiment(broken, resume=True, quiet=True)["summary"]
        assert done_again == [4, 4, 5]  # five batches an epoch: its third step has one
        assert resumed["losses"] == summary_of(whole)["losses"]
        for name in (f"{STEM}.group_norms.csv", "final_model/adapter_model.safetensors"):
            assert (broken.results_dir / name).read_bytes() == (whole / name).read_bytes()
        again = run_single_experiment(broken, resume=True, quiet=True)["summary"]
        assert again == resumed
        broken.lora.r = 8
        with pytest.raises(ExperimentError, match=r"begun with another lora\.r"):
            run_single_experiment(broken, resume=True, quiet=True)


class TestMistakes:
    def test_a_model_that_is_nowhere(self, tmp_path, monkeypatch):
        """S3-14: a name that is no folder, not cached and not to be reached ends in advice."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ExperimentError, match=r"(?s)no model 'nobody/nothing'.*tiny-random"):
            load_model("nobody/nothing")
        with pytest.raises(ExperimentError, match=r"no folder '\./gone'"):
            load_model("./gone")
        with pytest.raises(ExperimentError, match="holds no usable model"):
            load_model(str(tmp_path))

    def test_a_local_folder_is_a_model(self, tmp_path):
        """S3-14: a folder comes first, and needs no network."""
        tiny_model().save_pretrained(tmp_path / "mine")
        loaded = load_model(str(tmp_path / "mine"))
        for name, wanted in tiny_model().state_dict().items():
            assert torch.equal(loaded.state_dict()[name], wanted)

    def test_out_of_memory_names_the_options(self, tmp_path, monkeypatch):
        """S3-59: the advice keeps the samples of a step, and nothing is half there."""
        config = short_config(tmp_path)

        def burst(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        monkeypatch.setattr(training.Trainer, "training_step", burst)
        with pytest.raises(
            ExperimentError, match="try --batch_size 2 --grad_accum 4, or --max_len"
        ):
            run_single_experiment(config, quiet=True)
        assert not (config.results_dir / "results_summary.json").exists()

    def test_what_is_no_lack_of_memory_is_not_called_one(self):
        """S3-59: only errors of memory get that advice, and one sample gets the other."""
        assert not is_out_of_memory(RuntimeError("shapes do not fit"))
        advice = out_of_memory_advice(batch_size=1, grad_accum=4, max_length=128)
        assert advice == "out of memory; try --max_length 64"

    def test_a_model_without_the_modules(self, tmp_path, monkeypatch):
        """S3-04: a model of another family is refused with the names that it lacks."""
        monkeypatch.setattr(training, "load_model", lambda *_, **__: torch.nn.Linear(2, 2))
        with pytest.raises(ExperimentError, match="has no module q_proj"):
            run_single_experiment(short_config(tmp_path), quiet=True)

    def test_shared_weights_are_said(self, tmp_path, monkeypatch):
        """S3-04: with tied embeddings ``all`` trains, and the summary says what that means."""
        monkeypatch.setattr(experiment, "_draw", lambda *_, **__: None)
        config = short_config(tmp_path, training__max_steps=1, evaluation__enabled=False)

        def tied(*_, **__):
            model = tiny_model()
            model.config.tie_word_embeddings = True
            model.tie_weights()
            return model

        monkeypatch.setattr(training, "load_model", tied)
        (note,) = run_single_experiment(config, quiet=True)["summary"]["notes"]
        assert note.startswith("embed_tokens and lm_head share their weight")

    def test_several_processes_are_refused(self, tmp_path, monkeypatch):
        """Under torchrun several processes would write one folder: it is said before anything."""
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ExperimentError, match="without torchrun"):
            run_single_experiment(short_config(tmp_path), quiet=True)

    def test_bf16_trains_without_a_gpu(self, tmp_path, monkeypatch):
        """S3-62: the base is kept in bfloat16, the adapter and its gradients in float32."""
        monkeypatch.setattr(experiment, "_draw", lambda *_, **__: None)
        config = short_config(tmp_path, training__precision="bf16", training__max_steps=1)
        summary = run_single_experiment(config, quiet=True)["summary"]
        assert summary["precision"] == "bf16"
        assert summary["evaluation"]["status"] == "complete"
        assert summary["gradients"]["total"]["max"] > 0
        saved = load_file(config.results_dir / "final_model" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}

    def test_fp16_without_a_gpu(self, tmp_path, monkeypatch):
        """S3-62: a precision that this machine has not is refused; auto takes one that it has."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        config = short_config(tmp_path, training__precision="fp16")
        with pytest.raises(ExperimentError, match="no GPU; bf16 and fp32"):
            training.precision_of(config)
        config.training.precision = "auto"
        assert training.precision_of(config) == "fp32"

    def test_no_gradient_is_said_and_not_zero(self, tmp_path):
        """Where gradients are kept away from parameters, nothing is reported in their place."""
        model = torch.nn.Linear(2, 2)
        probe = [moetrace.GradientProbe()]
        with moetrace.attach(model, tmp_path / "run", layers=(), probes=probe, every=1) as tracer:
            tracer.on_step_begin()
            tracer.on_step_end()
        with pytest.raises(ExperimentError, match="under DeepSpeed"):
            write_gradient_files(tmp_path)
        assert not list(tmp_path.glob("*.csv"))
