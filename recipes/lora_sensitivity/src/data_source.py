"""Where the samples come from: named files, the local cache, the hub, or made on the spot."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.config import TINY_RANDOM, DataConfig, DatasetType, ExperimentConfig
from src.corpus import made_examples
from src.errors import ExperimentError
from src.examples import Example, Prompt, divided, grouped, pairs_of, read_file, sampled

__all__ = ["HUB", "Samples", "prompts_of", "samples_of"]

HUB = {
    # The first is a script, which `datasets` no longer runs; its tables are on this branch.
    DatasetType.E2E_NLG: ("tuetschek/e2e_nlg", "refs/convert/parquet"),
    DatasetType.SAMSUM: ("knkarthick/samsum", None),
}
"""Name and branch of each data set on the hub."""

_MADE = 600


@dataclass(frozen=True, slots=True)
class Samples:
    """What an experiment learns and is held against.

    Attributes:
        train: Samples to learn.
        validation: Samples whose loss is watched; none of their sources is learnt.
        test: Prompts that are answered and scored, with all that people wrote for them.
        source: Where they come from, in words.
        tested_on: Where the prompts come from, in words.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Prompt]
    source: str
    tested_on: str


def samples_of(config: ExperimentConfig) -> Samples:
    """The samples of an experiment, the same ones for the same seed.

    Raises:
        ExperimentError: They cannot be read, or reached.
    """
    data, seed = config.data, config.training.seed
    everything, source = _train(data, config.model.model_id)
    train, validation = divided(
        sampled(everything, data.num_samples, seed), data.validation_split, seed
    )
    test, tested_on = _test(data, config.model.model_id)
    if test is None:
        held = {example.source for example in validation}
        test = [prompt for prompt in grouped(everything) if prompt.source in held]
        tested_on = "the samples that are held out"
    return Samples(train, validation, _chosen(test, config, seed), source, tested_on)


def prompts_of(config: ExperimentConfig) -> tuple[list[Prompt], str]:
    """The prompts of an evaluation by itself, and where they come from.

    Without a test file or a test part these are all prompts of the data file.

    Raises:
        ExperimentError: They cannot be read, or reached.
    """
    test, tested_on = _test(config.data, config.model.model_id)
    if test is None:
        samples, tested_on = _train(config.data, config.model.model_id)
        test = grouped(samples)
    return _chosen(test, config, config.training.seed), tested_on


def _chosen(prompts: list[Prompt], config: ExperimentConfig, seed: int) -> list[Prompt]:
    order = sampled([Example(prompt.source, "") for prompt in prompts], 0, seed)
    by_source = {prompt.source: prompt for prompt in prompts}
    count = config.evaluation.num_samples or len(order)
    return [by_source[example.source] for example in order[:count]]


def _train(data: DataConfig, model_id: str) -> tuple[list[Example], str]:
    if data.data_file is not None:
        return read_file(data.data_file, data.dataset_type), f"file {Path(data.data_file).name}"
    if model_id == TINY_RANDOM:
        return made_examples(data.dataset_type, _MADE, seed=0), "made on the spot"
    return _from_hub(data.dataset_type, "train")


def _test(data: DataConfig, model_id: str) -> tuple[list[Prompt] | None, str]:
    if data.test_file is not None:
        named = read_file(data.test_file, data.dataset_type, option="--test_file")
        return grouped(named), f"file {Path(data.test_file).name}"
    if data.data_file is not None:
        return None, ""
    if model_id == TINY_RANDOM:
        learnt = {example.source for example in made_examples(data.dataset_type, _MADE, seed=0)}
        test = grouped(made_examples(data.dataset_type, _MADE, seed=1))
        return [prompt for prompt in test if prompt.source not in learnt], "made on the spot"
    examples, source = _from_hub(data.dataset_type, "test")
    return grouped(examples), source


def _from_hub(dataset: DatasetType, part: str) -> tuple[list[Example], str]:
    name, branch = HUB[dataset]
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ExperimentError(
            "the data set needs the package `datasets` (pip install datasets); "
            "a file of your own, --data_file, needs none"
        ) from error
    cached = _cached(name, part)
    if cached:
        rows: list[Mapping[str, Any]] = []
        for file in cached:
            rows.extend(datasets.Dataset.from_file(str(file), in_memory=True))
        return pairs_of(rows, dataset), f"{name} ({part}), from the local cache"
    try:
        loaded: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            name, split=part, revision=branch
        )
        return pairs_of(loaded, dataset), f"{name} ({part}), from the hub"
    except ExperimentError:
        raise
    except Exception as error:  # every layer below has errors of its own for a missing network
        folder = _cache_folder() / name.replace("/", "___")
        raise ExperimentError(
            f"cannot reach the data set {name!r}: {_first_line(error)}\n"
            f"give a file with --data_file (CSV or JSONL), run with --model {TINY_RANDOM}, "
            f"or, where the cache is broken, remove {folder} and try again"
        ) from error


def _cached(name: str, part: str) -> list[Path]:
    """The tables of a part that `datasets` has prepared before, in one folder."""
    found = sorted((_cache_folder() / name.replace("/", "___")).rglob(f"*-{part}*.arrow"))
    return [file for file in found if file.parent == found[0].parent]


def _cache_folder() -> Path:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE", f"{home}/datasets")).expanduser()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
