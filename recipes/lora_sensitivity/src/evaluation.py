"""Trained adapters asked and scored, one by one or side by side.

```
python -m src.evaluation --model results/e2e_all/final_model --base BASE --dataset e2e_nlg \
    --samples 100 --output results/e2e_all/manual_eval.json
```
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.config import DatasetType, ExperimentConfig
from src.base_model import load_model, load_tokenizer
from src.data_source import prompts_of
from src.errors import ExperimentError
from src.examples import Prompt
from src.generation import answers
from src.json_file import write_json
from src.scores import METRICS, scored

__all__ = ["compare_models", "evaluate", "main", "print_comparison_table"]


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: ExperimentConfig,
    *,
    tested_on: str,
    quiet: bool = False,
) -> dict[str, Any]:
    """Answers of a model, scored against all references of each prompt.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: What it is asked.
        config: How.
        tested_on: Where the prompts come from, in words.
        quiet: No progress bar.

    Returns:
        ``bleu``, ``rouge1``, ``rouge2``, ``rougeL``, ``meteor`` from 0 to 1 (null where a package
        is missing), ``num_samples``, and how they were formed.

    Raises:
        ExperimentError: There is no prompt, or memory ran out.
    """
    if not prompts:
        raise ExperimentError("found nothing to be asked; give --test_file, or hold samples out")
    said = answers(model, tokenizer, prompts, config, quiet=quiet)
    found = scored(said, [prompt.references for prompt in prompts])
    asked = config.evaluation
    found["variants"]["generation"] = (
        f"drawn, temperature {asked.temperature}, top_p {asked.top_p}"
        if asked.do_sample
        else "greedy"
    )
    found["num_references"] = sum(len(prompt.references) for prompt in prompts)
    found["tested_on"] = tested_on
    first = prompts[0]
    found["example"] = {"prompt": first.source, "answer": said[0], "reference": first.references[0]}
    return found


def compare_models(
    model_paths: Mapping[str, str],
    base_model_id: str,
    dataset_type: str = "e2e_nlg",
    num_samples: int = 100,
    output_dir: str | None = None,
    *,
    data_file: str | None = None,
    max_new_tokens: int = 128,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Scores of several adapters of one base model, which is loaded once.

    Args:
        model_paths: Folder of each adapter by the name that it is to have.
        base_model_id: The model that they were trained on.
        dataset_type: ``"e2e_nlg"`` or ``"samsum"``.
        num_samples: How many prompts; 0 for all.
        output_dir: Folder for ``evaluation_comparison.json``; None writes none.
        data_file: CSV or JSONL in place of the data set.
        max_new_tokens: Longest answer.
        quiet: No progress bar.

    Returns:
        For each name what `evaluate` returns.

    Raises:
        ExperimentError: There is no adapter, model or data.
    """
    config = ExperimentConfig()
    config.model.model_id = base_model_id
    config.data.dataset_type = DatasetType(dataset_type)
    config.data.test_file = data_file
    config.evaluation.num_samples = num_samples
    config.evaluation.max_new_tokens = max_new_tokens
    results = _each(dict(model_paths), config.checked(), quiet=quiet)
    if output_dir is not None:
        write_json(Path(output_dir) / "evaluation_comparison.json", results)
    return results


def _each(
    paths: Mapping[str, str], config: ExperimentConfig, *, quiet: bool
) -> dict[str, dict[str, Any]]:
    from peft import PeftModel

    if not paths:
        raise ExperimentError("found no adapter; name the folder of one at least")
    for name, path in paths.items():
        if not (Path(path) / "adapter_config.json").is_file():
            raise ExperimentError(f"found no adapter in {path!r} ({name}): no adapter_config.json")
    prompts, tested_on = prompts_of(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_model(config.model.model_id).to(device)
    tokenizer = load_tokenizer(config.model.model_id)
    results: dict[str, dict[str, Any]] = {}
    for at, (name, path) in enumerate(paths.items()):
        adapter = f"adapter_{at}"
        if at == 0:
            model = PeftModel.from_pretrained(model, path, adapter_name=adapter)
        else:
            model.load_adapter(path, adapter_name=adapter)
        model.set_adapter(adapter)
        results[name] = evaluate(
            model, tokenizer, prompts, config, tested_on=tested_on, quiet=quiet
        )
    return results


def print_comparison_table(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a row per model and a column per metric; a dash where a metric is missing.

    >>> print_comparison_table({"mlp": {"bleu": 0.25, "rougeL": None}})
    model    bleu  rouge1  rouge2  rougeL  meteor
    mlp    0.2500       -       -       -       -
    """
    wide = max([5, *map(len, results)])
    print(f"{'model':<{wide}}  " + "  ".join(f"{metric:>6}" for metric in METRICS))
    for name, found in results.items():
        values = [found.get(metric) for metric in METRICS]
        cells = [f"{'-' if value is None else format(value, '.4f'):>6}" for value in values]
        print(f"{name:<{wide}}  " + "  ".join(cells))


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate one adapter; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m src.evaluation", description="Score an adapter."
    )
    parser.add_argument("--model", required=True, help="folder of the adapter")
    parser.add_argument("--base", required=True, help="the model that it was trained on")
    parser.add_argument(
        "--dataset", default="e2e_nlg", choices=[item.value for item in DatasetType]
    )
    parser.add_argument("--samples", type=int, default=100, help="how many prompts; 0 for all")
    parser.add_argument("--output", help="file for the scores; without it they are printed")
    parser.add_argument("--data_file", help="CSV or JSONL in place of the data set")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    asked = parser.parse_args(arguments)
    try:
        results = compare_models(
            {"model": asked.model},
            asked.base,
            asked.dataset,
            asked.samples,
            data_file=asked.data_file,
            max_new_tokens=asked.max_new_tokens,
            quiet=asked.quiet,
        )
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if asked.output is not None:
        write_json(asked.output, results["model"])
    print_comparison_table({Path(asked.model).parent.name or asked.model: results["model"]})
    for package, how in results["model"]["missing"].items():
        print(f"not scored with {package}: {how}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
