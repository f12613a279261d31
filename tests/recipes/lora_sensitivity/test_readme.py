"""README.md of the LoRA recipe: every command and every Python example runs, cut short."""

import ast
import csv
import importlib
import json
import os
import re
import shlex
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import run_experiment
from configs.config import ExperimentConfig
from src import base_model, evaluation, experiment
from src.comparison import compare_experiments
from src.errors import ExperimentError
from tests.recipes.lora_sensitivity.made import (
    BASE_ID,
    RECIPE,
    cache_the_data,
    cache_the_model,
    shortened,
)

TEXT = (RECIPE / "README.md").read_text()
NOT_OURS = ("pip install ", "ls ")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every documented command on one line; loops are written out."""
    lines = []
    for block in blocks("bash"):
        joined = re.sub(r"\\\n\s*", "", block)
        loop = r"for r in ([\d ]+); do\n(.*?)done\n"
        for ranks, body in re.findall(loop, joined, re.DOTALL):
            lines += [re.sub(r"\$\{?r\}?", rank, body).strip() for rank in ranks.split()]
        lines += re.sub(loop, "", joined, flags=re.DOTALL).splitlines()
    in_tables = re.findall(r"`(python [^`]*--[^`]*)`", TEXT)
    # a comparison comes after what it compares
    return sorted([*lines, *in_tables], key=lambda line: ("--compare" in line, " -m " in line))


def run(line: str) -> int:
    """The exit status of a documented command, run in this process."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "run_experiment.py"]:
        return run_experiment.main(words[2:])
    if words[:2] == ["python", "-m"]:
        return importlib.import_module(words[2]).main(words[3:])
    assert line.startswith(NOT_OURS), line
    return 0


class Documented:
    """What running the whole page has left."""

    def __init__(self) -> None:
        self.asked: dict[str, ExperimentConfig] = {}
        self.status: dict[str, int] = {}
        self.printed: list[str] = []
        self.loaded: list[str] = []


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the page from top to bottom in an empty folder, with tiny things in the caches.

    Steps, samples and answers are few, equal experiments run once, and pictures are empty files;
    all else is as documented.
    """
    folder, done, ran = tmp_path_factory.mktemp("page"), Documented(), {}
    cache_the_model(folder / "hub")
    cache_the_data(folder / "datasets")
    before = Path.cwd()

    def short(config, *, resume=False, quiet=False):
        done.asked[config.name] = ExperimentConfig.from_dict(config.to_dict())
        config = shortened(config)
        key = json.dumps(config.to_dict())
        if key not in ran:
            ran[key] = experiment.run_single_experiment(config, resume=resume, quiet=True)
        return ran[key]

    def few_prompts(config, asked=evaluation.prompts_of):
        config.evaluation.max_new_tokens, config.evaluation.num_samples = 4, 2
        return asked(config)

    def noted(model_id, load=base_model.load_model):
        done.loaded.append(model_id)
        return load(model_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr(run_experiment, "run_single_experiment", short)
        patch.setattr(evaluation, "prompts_of", few_prompts)
        patch.setattr(evaluation, "load_model", noted)
        patch.setattr(Figure, "savefig", lambda _, path: Path(path).touch())
        os.chdir(folder)
        try:
            with redirect_stdout(StringIO()) as said:
                for line in commands():
                    done.status[line] = run(line)
                done.printed.append(said.getvalue())
            done.loaded.clear()
            for block in blocks("python"):
                with redirect_stdout(StringIO()) as said:
                    exec(compile(block, "README.md", "exec"), {})
                done.printed.append(said.getvalue())
            yield folder, done
        finally:
            os.chdir(before)


def norms_of(folder: Path, column: str) -> list[float]:
    """A column of the norms of an experiment."""
    kind = "group" if column.endswith("_norm") else "normalized"
    with (folder / f"gradient_analysis.{kind}_norms.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


class TestCommands:
    def test_every_command_runs(self, page):
        """Every documented command ends well, without a network."""
        _, done = page
        assert len(done.status) >= 25
        assert set(done.status.values()) == {0}

    def test_the_first_needs_nothing(self):
        """The page begins with one command that runs on a machine without a network."""
        first = next(line for block in blocks("bash") for line in block.splitlines())
        assert first.startswith("python run_experiment.py --model tiny-random ")
        assert "--num_samples 100 --max_steps 50" in first  # S3-58

    def test_the_install_lines_hold_every_package_that_is_imported(self):
        """S3-24: nothing is needed that the page does not say; seaborn and evaluate are not."""
        imported: set[str] = set()
        for file in RECIPE.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {item.name.partition(".")[0] for item in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module.partition(".")[0])
        said = re.findall(r"^pip install ([^#\n]*)", TEXT, re.MULTILINE)
        packages = set(re.findall(r"[\w-]+", " ".join(said)))
        ours = {"configs", "src", "moetrace_adapters"}
        comes_along = {"huggingface_hub", "tokenizers", "mpl_toolkits"}  # with one of them
        third = imported - set(sys.stdlib_module_names) - ours - comes_along
        assert third <= packages
        assert not packages & {"seaborn", "evaluate", "pandas"}

    def test_every_option_is_documented(self):
        """S3-01 to S3-23: the table of options has each of them, with its default."""
        options = {
            action.option_strings[-1]
            for action in run_experiment.parser()._actions
            if action.option_strings[-1] not in ("--help", "--preset", "--batch", "--compare")
        }
        table = TEXT.partition("## Options")[2].partition("## Examples")[0]
        assert options == set(
            re.findall(r"`(--\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M)))
        )

    @pytest.mark.parametrize(
        ("name", "path", "value"),
        [
            ("e2e_attn_r16_lr1e4", "lora.r", 16),
            ("e2e_attn_r16_lr1e4", "training.learning_rate", 1e-4),
            ("e2e_attn_r16_lr1e4", "training.max_steps", 200),
            ("e2e_attention_only", "training.batch_size", 2),
            ("e2e_attention_only", "training.gradient_accumulation_steps", 8),
            ("samsum_mlp_only", "training.max_steps", 100),
            ("my_custom_experiment", "lora.target_module_group", "mlp_only"),
            ("my_custom_experiment", "training.max_steps", 200),
            ("e2e_all", "evaluation.enabled", False),
        ],
    )
    def test_what_a_command_asks_for_is_what_it_says(self, page, name, path, value):
        """S3-20, S3-26, S3-50, S3-57, S3-59: before it was cut short, it was as documented."""
        section, _, setting = path.partition(".")
        _, done = page
        assert getattr(getattr(done.asked[name], section), setting) == value

    @pytest.mark.parametrize(
        "name",
        [
            *("e2e_attention_only", "e2e_mlp_only", "samsum_attention_only", "samsum_mlp_only"),
            *("e2e_all", "compare_attn", "compare_mlp", "e2e_attn_r4", "e2e_attn_r32"),
        ],
    )
    def test_each_experiment_has_its_results(self, page, name):
        """S3-19, S3-21, S3-25: the presets, the batch and the examples fill their folders."""
        folder, _ = page
        summary = json.loads((folder / "results" / name / "results_summary.json").read_text())
        assert summary["experiment"] == name
        assert summary["model"] == BASE_ID
        assert "from the local cache" in summary["samples"]["source"]
        wanted = "off" if name == "e2e_all" else "complete"
        assert summary["evaluation"]["status"] == wanted

    def test_the_programs_beside_it_leave_their_files(self, page):
        """S3-43, S3-44: three pictures, and scores by hand in the schema of the others."""
        folder, _ = page
        assert {path.name for path in (folder / "results/e2e_all/3d_plots").iterdir()} == {
            *("gradient_3d_surface.png", "gradient_3d_wireframe.png", "gradient_3d_bars.png")
        }
        scores = json.loads((folder / "results/e2e_all/manual_eval.json").read_text())
        assert set(scores) >= {"bleu", "rouge1", "rouge2", "rougeL", "meteor", "num_samples"}
        assert scores["num_samples"] == 2


class TestComparisons:
    def test_ranks_differ_in_the_raw_norm_and_not_in_the_scale_free_one(self, page):
        """S3-55: at fixed alpha the raw norm falls with the rank, alpha / sqrt(r) explains it."""
        folder, _ = page
        raw, free = {}, {}
        for rank in (4, 8, 16, 32):
            results = folder / "results" / f"e2e_attn_r{rank}"
            raw[rank] = norms_of(results, "attention_norm")[0]
            free[rank] = norms_of(results, "attention_scale_free")[0]
        assert raw[4] > 1.2 * raw[8] > 1.2**2 * raw[16] > 1.2**3 * raw[32]
        assert max(free.values()) < 1.25 * min(free.values())

    def test_the_summary_holds_three_forms(self, page, capsys):
        """S3-22, S3-45, S3-56: raw, rms and scale-free; a ratio to nothing is null."""
        folder, _ = page
        paths = [str(folder / "results" / name) for name in ("compare_attn", "compare_mlp")]
        summary = compare_experiments(paths, str(folder / "again"))
        written = Path(summary["folder"])
        assert re.fullmatch(r"comparison_\d{8}_\d{6}", written.name)
        assert json.loads((written / "experiment_summary.json").read_text()) == summary
        assert {path.name for path in written.iterdir()} == {
            *("experiment_summary.json", "comparison_gradient_norms.png"),
            *("compare_attn_layer_heatmap.png", "compare_attn_layer_comparison.png"),
            *("compare_mlp_layer_heatmap.png", "compare_mlp_layer_comparison.png"),
        }
        first, second = summary["experiments"].values()
        assert set(first["gradients"]) == {"attention", "total"}
        assert set(second["gradients"]) == {"mlp", "total"}
        norms = second["gradients"]["total"]
        parameters = second["trainable_parameters"]
        assert norms["rms"] == pytest.approx(norms["raw"] / parameters**0.5)
        assert norms["scale_free"] == pytest.approx(norms["raw"] / (32 / 8**0.5))
        assert first["attention_to_mlp"] == {"raw": None, "rms": None, "scale_free": None}

    def test_both_parts_in_one_experiment_have_a_ratio(self, page):
        """S3-45: where both were trained, attention to MLP is a number in each form."""
        folder, _ = page
        paths = [str(folder / "results" / name) for name in ("e2e_all", "compare_mlp")]
        ratio = compare_experiments(paths, str(folder / "ratio"))["experiments"]["e2e_all"][
            "attention_to_mlp"
        ]
        parameters = (4 * 3 * 8 * (32 + 88)) / (4 * 8 * (2 * (32 + 32) + 2 * (32 + 16)))
        assert ratio["rms"] == pytest.approx(ratio["raw"] * parameters**0.5)
        assert ratio["scale_free"] == pytest.approx(ratio["raw"])

    @pytest.mark.parametrize(
        ("paths", "says"), [(["one"], "takes two"), (["one", "two"], "no results in 'one'")]
    )
    def test_what_cannot_be_compared_is_refused(self, tmp_path, paths, says):
        """S3-22: fewer than two folders, or one without results."""
        with pytest.raises(ExperimentError, match=says):
            compare_experiments(paths, str(tmp_path))


class TestPython:
    def test_the_result_holds_the_summary(self, page):
        """S3-51: what the example prints is results_summary.json."""
        folder, done = page
        summary = (folder / "results/my_custom_experiment/results_summary.json").read_text()
        assert done.printed[1].strip() == str(json.loads(summary))

    def test_pictures_and_report(self, page):
        """S3-54: the example leaves its files."""
        folder, done = page
        assert (folder / "comparison.png").exists()
        assert (folder / "heatmap.png").exists()
        assert done.printed[2].startswith("{'Attention': {'attention': {'mean': ")

    def test_models_side_by_side(self, page):
        """S3-52, S3-53: three adapters, one base model, a row each and a column per metric."""
        folder, done = page
        assert done.loaded == [BASE_ID]
        results = json.loads(
            (folder / "results/eval_comparison/evaluation_comparison.json").read_text()
        )
        assert list(results) == ["attention", "mlp", "all"]
        header, *rows = done.printed[3].splitlines()
        assert header.split() == ["model", "bleu", "rouge1", "rouge2", "rougeL", "meteor"]
        for row, (name, found) in zip(rows, results.items(), strict=True):
            metrics = ("bleu", "rouge1", "rouge2", "rougeL", "meteor")
            assert row.split() == [name, *(f"{found[metric]:.4f}" for metric in metrics)]

    def test_an_adapter_that_is_not_there(self, tmp_path):
        """S3-52: the message names the model and the folder, before anything is loaded."""
        with pytest.raises(ExperimentError, match=r"no adapter in '.*' \(mine\)"):
            evaluation.compare_models({"mine": str(tmp_path)}, BASE_ID)
