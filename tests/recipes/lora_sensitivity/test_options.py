"""The command line of the LoRA recipe: every option, its default, presets and names."""

import subprocess
import sys

import pytest

import run_experiment
from configs.config import (
    PRESETS,
    TARGET_MODULES,
    DatasetType,
    ExperimentConfig,
    TargetModuleGroup,
)
from run_experiment import configs_of, main, parser
from src.errors import ExperimentError
from tests.recipes.lora_sensitivity.made import BASE_ID, RECIPE

DEFAULTS = [
    ("S3-01", "--dataset", "data.dataset_type", "e2e_nlg", "samsum"),
    ("S3-02", "--num_samples", "data.num_samples", 500, "0"),
    ("S3-03", "--max_length", "data.max_length", 128, "64"),
    ("S3-04", "--target", "lora.target_module_group", "attention_only", "all"),
    ("S3-05", "--r", "lora.r", 8, "16"),
    ("S3-06", "--lora_alpha", "lora.lora_alpha", 32, "8"),
    ("S3-07", "--lora_dropout", "lora.lora_dropout", 0.1, "0.0"),
    ("S3-08", "--batch_size", "training.batch_size", 4, "2"),
    ("S3-09", "--grad_accum", "training.gradient_accumulation_steps", 4, "8"),
    ("S3-10", "--max_steps", "training.max_steps", 100, "200"),
    ("S3-11", "--lr", "training.learning_rate", 2e-4, "1e-4"),
    ("S3-12", "--warmup_steps", "training.warmup_steps", 10, "0"),
    ("S3-13", "--seed", "training.seed", 42, "7"),
    ("S3-14", "--model", "model.model_id", BASE_ID, "tiny-random"),
    ("S3-15", "--log_frequency", "analysis.log_frequency", 1, "5"),
    ("S3-18", "--eval_samples", "evaluation.num_samples", 100, "10"),
    ("S3-19", "--experiment_name", "experiment_name", None, "mine"),
    ("S3-23", "--output_dir", "output_dir", "./results", "elsewhere"),
    ("S3-23", "--data_file", "data.data_file", None, "rows.csv"),
    ("S3-62", "--validation_split", "data.validation_split", 0.2, "0.1"),
    ("S3-62", "--eval_steps", "training.eval_steps", 10, "5"),
    ("S3-62", "--save_steps", "training.save_steps", 50, "25"),
    ("S3-62", "--weight_decay", "training.weight_decay", 0.01, "0.0"),
    ("S3-62", "--max_grad_norm", "training.max_grad_norm", 1.0, "0.5"),
    ("S3-62", "--lr_scheduler", "training.lr_scheduler_type", "cosine", "linear"),
    ("S3-62", "--precision", "training.precision", "auto", "bf16"),
    ("S3-62", "--save_format", "analysis.save_format", "csv", "json"),
    ("S3-62", "--max_new_tokens", "evaluation.max_new_tokens", 128, "8"),
    ("S3-62", "--temperature", "evaluation.temperature", 0.7, "1.0"),
    ("S3-62", "--top_p", "evaluation.top_p", 0.9, "0.5"),
]
FLAGS = [
    ("S3-16", "--no_layer_norm", "analysis.layer_norms", True),
    ("S3-17", "--no_eval", "evaluation.enabled", True),
    ("S3-62", "--sample", "evaluation.do_sample", False),
]


def of(*words: str) -> ExperimentConfig:
    """The one experiment of a command line."""
    (config,) = configs_of(parser().parse_args(words))
    return config


def at(config: ExperimentConfig, path: str) -> object:
    """The setting of a dotted name."""
    value: object = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


class TestOptions:
    @pytest.mark.parametrize(("row", "option", "path", "default", "other"), DEFAULTS)
    def test_an_option_has_its_default_and_is_set(self, row, option, path, default, other):
        """S3-01 to S3-19, S3-23, S3-62: without an option its default holds; with it, its value."""
        assert at(of(), path) == default, row
        found = at(of(option, other), path)
        assert found == (type(default)(other) if default is not None else other), row

    @pytest.mark.parametrize(("row", "flag", "path", "default"), FLAGS)
    def test_a_flag_turns_its_setting_over(self, row, flag, path, default):
        """S3-16, S3-17, S3-62: a flag is off without being asked."""
        assert at(of(), path) is default, row
        assert at(of(flag), path) is not default, row

    def test_the_groups_of_modules(self):
        """S3-04: each target names its modules; all adds the embedding and the LM head."""
        attention = ("q_proj", "k_proj", "v_proj", "o_proj")
        mlp = ("gate_proj", "up_proj", "down_proj")
        assert TARGET_MODULES[TargetModuleGroup.ATTENTION_ONLY] == attention
        assert TARGET_MODULES[TargetModuleGroup.MLP_ONLY] == mlp
        assert TARGET_MODULES[TargetModuleGroup.BOTH] == attention + mlp
        assert TARGET_MODULES[TargetModuleGroup.ALL] == (
            *attention,
            *mlp,
            "embed_tokens",
            "lm_head",
        )

    @pytest.mark.parametrize(
        ("option", "value"),
        [("--r", "0"), ("--batch_size", "0"), ("--lora_dropout", "1.0"), ("--max_length", "8")],
    )
    def test_a_value_that_cannot_be_is_refused_by_the_option(self, option, value, capsys):
        """A value out of range ends in one line that names the option."""
        assert main([option, value]) == 1
        assert capsys.readouterr().err.startswith(f"error: found {option} {value}")

    @pytest.mark.parametrize("value", ["wikisql", "multi_nli"])
    def test_another_data_set_is_refused(self, value, capsys):
        """S3-63: there are two data sets; a name that is neither lists them."""
        with pytest.raises(SystemExit):
            parser().parse_args(["--dataset", value])
        assert "e2e_nlg" in capsys.readouterr().err

    def test_a_name_stays_in_its_folder(self):
        """A name that leads out of the folder of results is refused."""
        with pytest.raises(ExperimentError, match="one folder below"):
            of("--experiment_name", "../other")


class TestPresets:
    def test_there_are_four(self):
        """S3-20, S3-25: a preset is a data set and a target."""
        assert PRESETS == {
            "e2e_attention": (DatasetType.E2E_NLG, TargetModuleGroup.ATTENTION_ONLY),
            "e2e_mlp": (DatasetType.E2E_NLG, TargetModuleGroup.MLP_ONLY),
            "samsum_attention": (DatasetType.SAMSUM, TargetModuleGroup.ATTENTION_ONLY),
            "samsum_mlp": (DatasetType.SAMSUM, TargetModuleGroup.MLP_ONLY),
        }

    def test_every_flag_wins_over_it(self):
        """S3-20, S3-59: the advice against a full memory has its effect beside a preset."""
        config = of("--preset", "e2e_attention", "--batch_size", "2", "--grad_accum", "8")
        assert config.training.batch_size == 2
        assert config.training.gradient_accumulation_steps == 8
        assert of("--preset", "e2e_mlp", "--target", "all").name == "e2e_all"

    def test_a_batch_is_all_of_them_with_the_flags(self):
        """S3-21: --batch runs the four presets, each with every flag that was given."""
        configs = configs_of(parser().parse_args(["--batch", "--r", "2"]))
        assert [config.name for config in configs] == [
            *("e2e_attention_only", "e2e_mlp_only", "samsum_attention_only", "samsum_mlp_only")
        ]
        assert {config.lora.r for config in configs} == {2}

    @pytest.mark.parametrize("words", [["--experiment_name", "x"], ["--target", "all"]])
    def test_a_batch_never_writes_two_experiments_into_one_folder(self, words):
        """A flag that would give one folder to several presets is refused."""
        with pytest.raises(ExperimentError, match="--batch"):
            configs_of(parser().parse_args(["--batch", *words]))

    @pytest.mark.parametrize("words", [["--batch"], ["--compare", "a", "b"]])
    def test_modes_exclude_each_other(self, words, capsys):
        """S3-22, S3-23: a preset, a batch and a comparison are three different things."""
        with pytest.raises(SystemExit):
            parser().parse_args(["--preset", "e2e_mlp", *words])
        assert "not allowed with" in capsys.readouterr().err


class TestNames:
    @pytest.mark.parametrize(
        ("words", "name"),
        [
            (["--preset", "e2e_attention"], "e2e_attention_only"),
            (["--dataset", "e2e_nlg", "--target", "all"], "e2e_all"),
            (["--preset", "samsum_mlp"], "samsum_mlp_only"),
            (["--experiment_name", "e2e_attn_r16_lr1e4", "--lr", "1e-4"], "e2e_attn_r16_lr1e4"),
        ],
    )
    def test_a_name_is_given_or_made(self, words, name):
        """S3-19, S3-57: the folder is named after data and target, or as it was asked for."""
        assert of(*words).name == name

    def test_a_made_name_follows_what_was_set_last(self):
        """S3-50: settings may change after construction, and the folder with them."""
        config = ExperimentConfig()
        config.data.dataset_type = DatasetType.SAMSUM
        config.lora.target_module_group = TargetModuleGroup.BOTH
        assert config.results_dir.name == "samsum_both"
        config.experiment_name = "later"
        assert config.results_dir.name == "later"


class TestStart:
    def test_an_interrupted_one_says_how_to_go_on(self, monkeypatch, capsys):
        """Ctrl-C ends in one line that names --resume."""

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(run_experiment, "run_single_experiment", interrupt)
        assert main(["--quiet"]) == 130
        assert "--resume" in capsys.readouterr().err

    def test_it_starts_from_any_folder_and_lists_every_option(self, tmp_path):
        """S3-60: the program finds its parts wherever it is started, and needs no torch to help."""
        done = subprocess.run(
            [sys.executable, "-X", "importtime", str(RECIPE / "run_experiment.py"), "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(option in done.stdout for _, option, *_ in DEFAULTS)
        assert " torch\n" not in done.stderr
