"""What the tests of the LoRA recipe share: short settings, and caches that hold tiny things."""

from pathlib import Path
from typing import Any

from configs.config import TINY_RANDOM, DatasetType, ExperimentConfig, TargetModuleGroup

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "lora_sensitivity"

BASE_ID = "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"


def shortened(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment in about half a second: two steps on ten samples, two answers."""
    config = ExperimentConfig.from_dict(config.to_dict())
    config.training.max_steps = 2
    config.training.batch_size = 2
    config.training.gradient_accumulation_steps = 1
    config.data.num_samples = 10
    config.data.max_length = 64
    config.evaluation.num_samples = 2
    config.evaluation.max_new_tokens = 4
    return config


def short_config(output_dir: Path, **changes: Any) -> ExperimentConfig:
    """An experiment of six steps, two forwards each, on all kinds of modules."""
    config = ExperimentConfig()
    config.model.model_id = TINY_RANDOM
    config.data.num_samples = 24
    config.data.max_length = 96
    config.lora.target_module_group = TargetModuleGroup.ALL
    config.lora.r = 4
    config.training.batch_size = 4
    config.training.gradient_accumulation_steps = 2
    config.training.max_steps = 6
    config.training.eval_steps = 2
    config.training.save_steps = 2
    config.training.warmup_steps = 1
    config.training.learning_rate = 0.5
    config.evaluation.num_samples = 3
    config.evaluation.max_new_tokens = 6
    config.output_dir = str(output_dir)
    for path, value in changes.items():
        section, _, name = path.partition("__")
        setattr(getattr(config, section), name, value)
    return config


def cache_the_model(hub: Path) -> None:
    """Put a tiny model into a hub cache, under the name that documentation uses."""
    from src.base_model import tiny_model, tiny_tokenizer

    folder = hub / f"models--{BASE_ID.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    tiny_model().save_pretrained(snapshot)
    tiny_tokenizer().save_pretrained(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")


def cache_the_data(home: Path) -> None:
    """Put made texts into a cache of the package `datasets`, under both names."""
    import pyarrow

    from src.corpus import made_examples
    from src.data_source import HUB
    from src.examples import COLUMNS

    for dataset in DatasetType:
        name = HUB[dataset][0].replace("/", "___")
        source, target = COLUMNS[dataset][0][0], COLUMNS[dataset][1][0]
        folder = home / name / "default" / "0.0.0" / "abc"
        folder.mkdir(parents=True)
        for seed, part in enumerate(("train", "test")):
            rows = made_examples(dataset, 40, seed=seed)
            table = pyarrow.table(
                {source: [row.source for row in rows], target: [row.target for row in rows]}
            )
            with (
                (folder / f"{name}-{part}.arrow").open("wb") as file,
                pyarrow.ipc.new_stream(file, table.schema) as writer,
            ):
                writer.write_table(table)
