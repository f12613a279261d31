"""One experiment from its settings to its folder of results."""

import shutil
import time
from pathlib import Path
from typing import Any

from configs.config import ExperimentConfig
from src.data_source import Samples, samples_of
from src.errors import ExperimentError
from src.evaluation import evaluate
from src.gradient_files import STEM, write_gradient_files
from src.json_file import read_json, write_json
from src.training import Trained, train
from src.utils.gradient_log import load_gradient_log_from_csv
from src.utils.visualization import (
    plot_gradient_evolution,
    plot_gradient_norms,
    plot_layer_comparison,
    plot_layer_heatmap,
    plot_training_loss,
)

__all__ = ["SUMMARY", "run_single_experiment"]

SUMMARY = "results_summary.json"
"""Written last: where it is, the experiment is complete."""

_FILES = (
    *("config.json", "training_loss.png", f"{STEM}.group_norms.csv", f"{STEM}.layer_norms.csv"),
    *(f"{STEM}.normalized_norms.csv", f"{STEM}.summary.json", f"{STEM}.json"),
    *("gradient_norms.png", "layer_heatmap.png", "layer_comparison.png"),
    *("gradient_evolution.png", "evaluation_results.json", SUMMARY),
)
_FOLDERS = ("run", "checkpoints", "final_model")


def run_single_experiment(
    config: ExperimentConfig, *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Train, measure, draw and score; results of the same name are replaced.

    Args:
        config: The experiment.
        resume: Keep what an earlier try of the same experiment has done.
        quiet: No progress bars and no lines.

    Returns:
        ``summary``, which is what ``results_summary.json`` holds, and ``results_dir``.

    Raises:
        ExperimentError: Something a person can mend; the message says how.
    """
    folder = config.checked().results_dir
    began = time.monotonic()
    if resume and _same(config, folder) and (folder / SUMMARY).is_file():
        return {"summary": read_json(folder / SUMMARY), "results_dir": str(folder)}
    samples = samples_of(config)
    if not resume:
        _clear(folder)
    write_json(folder / "config.json", config.to_dict())
    trained = train(config, samples, resume=resume, quiet=quiet)
    trained.model.save_pretrained(folder / "final_model", save_embedding_layers=False)
    gradients = write_gradient_files(
        folder,
        layers=config.analysis.layer_norms,
        as_json=config.analysis.save_format == "json",
    )
    _draw(folder, trained, layers=config.analysis.layer_norms)
    evaluation = _evaluated(config, samples, trained, folder, quiet=quiet)
    summary = {
        "experiment": config.name,
        "model": config.model.model_id,
        "dataset": config.data.dataset_type,
        "target": config.lora.target_module_group,
        "lora": {
            "r": config.lora.r,
            "alpha": config.lora.lora_alpha,
            "scaling": config.lora.lora_alpha / config.lora.r,
        },
        "trainable_parameters": trained.trainable,
        "precision": trained.precision,
        "samples": {
            "source": samples.source,
            "train": len(samples.train),
            "validation": len(samples.validation),
            "cut_to_max_length": trained.cut,
        },
        "steps": trained.steps,
        "final_model": "last" if trained.best_step is None else "best",
        "best_step": trained.best_step,
        "losses": trained.losses,
        "gradients": gradients,
        "evaluation": evaluation,
        "notes": list(trained.notes),
        "seconds": round(time.monotonic() - began, 1),
    }
    summary = write_json(folder / SUMMARY, summary)
    if not quiet:
        print(f"results in {folder}")
    return {"summary": summary, "results_dir": str(folder)}


def _evaluated(
    config: ExperimentConfig, samples: Samples, trained: Trained, folder: Path, *, quiet: bool
) -> dict[str, Any]:
    """The scores, or why there are none: a training is not lost because its scores are."""
    if not config.evaluation.enabled:
        return {"status": "off", "reason": "--no_eval"}
    try:
        found = evaluate(
            trained.model,
            trained.tokenizer,
            samples.test,
            config,
            tested_on=samples.tested_on,
            quiet=quiet,
        )
    except Exception as error:  # of a model, a tokenizer or a package for scores
        reason = f"{type(error).__name__}: {error}"
        if not quiet:
            print(f"not evaluated: {reason}")
        return {"status": "failed", "reason": reason}
    write_json(folder / "evaluation_results.json", found)
    if not quiet:
        for package, how in found["missing"].items():
            print(f"not scored with {package}: {how}")
    return {"status": "complete", **found}


def _draw(folder: Path, trained: Trained, *, layers: bool) -> None:
    plot_training_loss(
        trained.losses["train"], trained.losses["eval"], save_path=folder / "training_loss.png"
    )
    log = load_gradient_log_from_csv(folder / STEM)
    plot_gradient_norms(log, save_path=folder / "gradient_norms.png")
    if layers:
        plot_layer_heatmap(log, save_path=folder / "layer_heatmap.png")
        plot_layer_comparison(log, save_path=folder / "layer_comparison.png")
        plot_gradient_evolution(log, save_path=folder / "gradient_evolution.png")


def _same(config: ExperimentConfig, folder: Path) -> bool:
    """Whether the folder is of this experiment.

    Raises:
        ExperimentError: It is of another one.
    """
    if not (folder / "config.json").is_file():
        return False
    before = read_json(folder / "config.json")
    now = config.to_dict()
    changed = sorted(
        f"{section}.{key}"
        for section, values in now.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if before.get(section, {}).get(key) != value
    )
    if changed:
        raise ExperimentError(
            f"{folder} was begun with another {', '.join(changed)}; run without --resume to "
            "replace it, or with another --experiment_name"
        )
    return True


def _clear(folder: Path) -> None:
    """Remove what an earlier experiment of this name has written, and nothing else."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
