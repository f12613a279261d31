"""Several experiments side by side: raw norms, and norms that rank, alpha and size do not move."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from configs.config import ExperimentConfig
from src.errors import ExperimentError
from src.experiment import SUMMARY
from src.gradient_files import STEM
from src.json_file import read_json, write_json
from src.scores import METRICS
from src.utils.drawing import new_figure, saved
from src.utils.gradient_log import GradientLog, load_gradient_log_from_csv
from src.utils.visualization import plot_layer_comparison, plot_layer_heatmap

__all__ = ["compare_experiments", "print_experiments"]

_FORMS = {
    "raw": "raw norm",
    "rms": "per parameter: norm / sqrt(parameters)",
    "scale_free": "scale-free: norm / (alpha / sqrt(r))",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True, slots=True)
class _Experiment:
    config: ExperimentConfig
    log: GradientLog
    summary: Mapping[str, Any]

    def norms(self, group: str, form: str) -> NDArray[np.float64]:
        if form == "raw":
            return self.log.groups[group]
        missing = np.full(len(self.log.steps), np.nan)
        return self.log.normalized.get(f"{group}_{form}", missing)


def compare_experiments(paths: Sequence[str], output_dir: str) -> dict[str, Any]:
    """Write ``comparison_<timestamp>`` with a summary and pictures.

    Args:
        paths: Folders of results, two at least.
        output_dir: Folder above the new one.

    Returns:
        What ``experiment_summary.json`` holds; ``folder`` says where it is.

    Raises:
        ExperimentError: There are fewer than two, or one of them holds no results.
    """
    if len(paths) < 2:
        raise ExperimentError(f"found {len(paths)} folder to compare; --compare takes two at least")
    loaded = {name: _loaded(path) for name, path in _named(paths).items()}
    folder = _new_folder(Path(output_dir))
    _draw_norms(loaded, folder / "comparison_gradient_norms.png")
    for name, item in loaded.items():
        if item.log.blocks:
            title = f"{name}: gradient per block"
            plot_layer_heatmap(item.log, title, folder / f"{name}_layer_heatmap.png")
            plot_layer_comparison(item.log, title, folder / f"{name}_layer_comparison.png")
    summary = {
        "folder": str(folder),
        "forms": _FORMS,
        "note": (
            "a raw norm grows with alpha / sqrt(r) and with the number of parameters: compare "
            "ranks and alphas by scale_free, attention and MLP by rms"
        ),
        "experiments": {name: _told(item) for name, item in loaded.items()},
    }
    written: dict[str, Any] = write_json(folder / "experiment_summary.json", summary)
    return written


def print_experiments(summary: Mapping[str, Any]) -> None:
    """Print a row per experiment: its settings, three forms of its norm, loss and BLEU."""
    experiments = summary["experiments"]
    wide = max(10, *map(len, experiments))
    columns = ("r", "alpha", "parameters", "raw", "rms", "scale-free", "eval loss", "BLEU")
    print(f"{'experiment':<{wide}}" + "".join(f"{name:>12}" for name in columns))
    for name, item in experiments.items():
        norms = item["gradients"]["total"]
        scores = item["evaluation"] or {}
        cells = (
            *(item["r"], item["alpha"], item["trainable_parameters"], norms["raw"], norms["rms"]),
            *(norms["scale_free"], item["best_eval_loss"], scores.get("bleu")),
        )
        print(f"{name:<{wide}}" + "".join(f"{_cell(value):>12}" for value in cells))
    print(summary["note"])


def _named(paths: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for path in paths:
        name = Path(path).resolve().name
        while name in named:
            name += "_again"
        named[name] = path
    return named


def _loaded(path: str) -> _Experiment:
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ExperimentError(f"found no results in {path!r}: no config.json")
    config = ExperimentConfig.from_dict(read_json(folder / "config.json"))
    there = (folder / SUMMARY).is_file()
    log = load_gradient_log_from_csv(folder / STEM)
    return _Experiment(config, log, read_json(folder / SUMMARY) if there else {})


def _new_folder(above: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
    folder = above / f"comparison_{stamp}"
    again = 1
    while folder.exists():
        again += 1
        folder = above / f"comparison_{stamp}_{again}"
    folder.mkdir(parents=True)
    return folder


def _told(item: _Experiment) -> dict[str, Any]:
    losses = item.summary.get("losses", {})
    evaluation = item.summary.get("evaluation", {})
    scored = evaluation.get("status") == "complete"
    return {
        "model": item.config.model.model_id,
        "dataset": item.config.data.dataset_type,
        "target": item.config.lora.target_module_group,
        "r": item.config.lora.r,
        "alpha": item.config.lora.lora_alpha,
        "trainable_parameters": item.summary.get("trainable_parameters"),
        "gradients": {
            group: {form: _mean(item.norms(group, form)) for form in _FORMS}
            for group in (*item.log.trained, "total")
        },
        "attention_to_mlp": {
            form: _ratio(
                _mean(item.norms("attention", form)),
                _mean(item.norms("mlp", form)),
            )
            for form in _FORMS
        },
        "last_train_loss": losses["train"][-1][1] if losses.get("train") else None,
        "best_eval_loss": min((loss for _, loss in losses.get("eval", ())), default=None),
        "evaluation": {name: evaluation[name] for name in METRICS} if scored else None,
    }


def _mean(norms: NDArray[np.float64]) -> float | None:
    known = norms[np.isfinite(norms)]
    return float(known.mean()) if known.size else None


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else over / under


def _draw_norms(loaded: Mapping[str, _Experiment], path: Path) -> None:
    figure = new_figure(11.5, 4.4, "Gradient norm of all trained parameters, before clipping")
    panels = figure.subplots(1, len(_FORMS))
    for axes, (form, name) in zip(panels, _FORMS.items(), strict=True):
        for at, (label, item) in enumerate(loaded.items()):
            norms = item.norms("total", form)
            axes.plot(item.log.steps, norms, color=_COLOURS[at % len(_COLOURS)], label=label)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_ylim(bottom=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    saved(figure, path)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
