"""Which modules of a language model does LoRA move, and how much? One experiment, or several.

```
python run_experiment.py --model tiny-random --max_steps 20        # needs no network and no file
python run_experiment.py --preset e2e_attention                    # a preset; flags win over it
python run_experiment.py --batch                                   # all presets
python run_experiment.py --compare results/one results/other
```
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# From wherever it is started: the program's own folder is where its parts are.
if str(Path(__file__).resolve().parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from configs.config import PRESETS, DatasetType, ExperimentConfig, TargetModuleGroup
from src.errors import ExperimentError

__all__ = ["configs_of", "main", "parser", "run_single_experiment"]

_OPTIONS: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    ("--dataset", "data.dataset_type", DatasetType, "e2e_nlg or samsum"),
    ("--data_file", "data.data_file", str, "CSV, TSV, JSON or JSONL in place of the data set"),
    ("--test_file", "data.test_file", str, "the same for the evaluation"),
    ("--num_samples", "data.num_samples", int, "samples to train on, validation included; 0: all"),
    ("--max_length", "data.max_length", int, "most tokens of a sample"),
    ("--validation_split", "data.validation_split", float, "share that is held out; 0: none"),
    ("--target", "lora.target_module_group", TargetModuleGroup, "modules that get an adapter"),
    ("--r", "lora.r", int, "rank of the adapter"),
    ("--lora_alpha", "lora.lora_alpha", int, "scaling is lora_alpha / r"),
    ("--lora_dropout", "lora.lora_dropout", float, "dropout before the adapter"),
    ("--batch_size", "training.batch_size", int, "samples per forward and device"),
    ("--grad_accum", "training.gradient_accumulation_steps", int, "forwards per optimizer step"),
    ("--max_steps", "training.max_steps", int, "optimizer steps"),
    ("--lr", "training.learning_rate", float, "highest learning rate"),
    ("--warmup_steps", "training.warmup_steps", int, "steps until it is reached"),
    ("--seed", "training.seed", int, "the same seed gives the same files"),
    ("--eval_steps", "training.eval_steps", int, "steps between validations"),
    ("--save_steps", "training.save_steps", int, "steps between checkpoints"),
    ("--weight_decay", "training.weight_decay", float, "of AdamW"),
    ("--max_grad_norm", "training.max_grad_norm", float, "clip gradients to it; 0: never"),
    ("--lr_scheduler", "training.lr_scheduler_type", str, "by transformers' names"),
    ("--precision", "training.precision", str, "fp32, fp16, bf16; auto: fp16 with a GPU"),
    ("--model", "model.model_id", str, "folder, name on the hub, or tiny-random"),
    ("--log_frequency", "analysis.log_frequency", int, "steps per row of gradient norms"),
    ("--save_format", "analysis.save_format", str, "csv, or json for a JSON file beside it"),
    ("--eval_samples", "evaluation.num_samples", int, "prompts that are scored; 0: all"),
    ("--max_new_tokens", "evaluation.max_new_tokens", int, "longest answer"),
    ("--temperature", "evaluation.temperature", float, "of --sample"),
    ("--top_p", "evaluation.top_p", float, "of --sample"),
    ("--output_dir", "output_dir", str, "folder above those of the experiments"),
    ("--experiment_name", "experiment_name", str, "name of the folder; made of data and target"),
)
_FLAGS = (
    ("--no_layer_norm", "analysis.layer_norms", False, "no norms per layer"),
    ("--no_eval", "evaluation.enabled", False, "no answers and no scores after the training"),
    ("--sample", "evaluation.do_sample", True, "draw tokens; without it answers are greedy"),
)
_CHOICES = {
    "--save_format": ["csv", "json"],
    "--precision": ["auto", "fp32", "fp16", "bf16"],
}


def parser() -> argparse.ArgumentParser:
    """The options; only those that were given are set."""
    defaults = ExperimentConfig()
    options = argparse.ArgumentParser(
        prog="run_experiment.py", description=(__doc__ or "").partition("\n")[0]
    )
    modes = options.add_mutually_exclusive_group()
    modes.add_argument("--preset", choices=list(PRESETS), help="data set and modules by one name")
    modes.add_argument("--batch", action="store_true", help="run all presets")
    modes.add_argument("--compare", nargs="+", metavar="DIR", help="compare folders of results")
    options.add_argument("--resume", action="store_true", help="go on with an interrupted try")
    options.add_argument("--quiet", action="store_true", help="no progress bars and no lines")
    for name, path, kind, text in _OPTIONS:
        options.add_argument(
            name,
            dest=path,
            type=kind,
            choices=_CHOICES.get(name, list(kind) if kind in _ENUMS else None),
            default=argparse.SUPPRESS,
            metavar=None if name in _CHOICES or kind in _ENUMS else name.strip("-").upper(),
            help=f"{text} ({_at(defaults, path)})".replace("%", "%%"),
        )
    for name, path, value, text in _FLAGS:
        options.add_argument(
            name,
            dest=path,
            action="store_const",
            const=value,
            default=argparse.SUPPRESS,
            help=text,
        )
    return options


def configs_of(asked: argparse.Namespace) -> list[ExperimentConfig]:
    """The experiments that were asked for: defaults, then the preset, then every flag.

    Raises:
        ExperimentError: They cannot be run.
    """
    given = {key: value for key, value in vars(asked).items() if key in _PATHS}
    if asked.batch and given.get("experiment_name") is not None:
        raise ExperimentError("--batch runs four experiments; --experiment_name names one")
    configs = []
    for preset in PRESETS if asked.batch else (asked.preset,):
        config = ExperimentConfig()
        if preset is not None:
            config.data.dataset_type, config.lora.target_module_group = PRESETS[preset]
        for path, value in given.items():
            section, _, name = path.rpartition(".")
            setattr(getattr(config, section) if section else config, name, value)
        configs.append(config.checked())
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise ExperimentError(
            f"--batch with this --dataset or --target gives one folder to several presets: {names}"
        )
    return configs


def run_single_experiment(
    config: ExperimentConfig, *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Run one experiment, see `src.experiment.run_single_experiment`."""
    from src import experiment

    return experiment.run_single_experiment(config, resume=resume, quiet=quiet)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    asked = parser().parse_args(arguments)
    try:
        if asked.compare:
            from src.comparison import compare_experiments, print_experiments

            above = getattr(asked, "output_dir", ExperimentConfig().output_dir)
            summary = compare_experiments(asked.compare, above)
            if not asked.quiet:
                print_experiments(summary)
                print(f"comparison in {summary['folder']}")
            return 0
        configs = configs_of(asked)
        for at, config in enumerate(configs, 1):
            if not asked.quiet:
                print(f"[{at}/{len(configs)}] {config.name}")
            run_single_experiment(config, resume=asked.resume, quiet=asked.quiet)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on", file=sys.stderr)
        return 130
    return 0


def _at(config: ExperimentConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


_ENUMS = (DatasetType, TargetModuleGroup)
_PATHS = {path for _, path, *_ in (*_OPTIONS, *_FLAGS)}


if __name__ == "__main__":
    sys.exit(main())
