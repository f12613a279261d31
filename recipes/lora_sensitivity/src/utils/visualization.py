"""Pictures of losses and gradient norms. Each returns its figure, and writes it if asked."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from src.errors import ExperimentError
from src.json_file import write_json
from src.utils.drawing import COLOURS, GROUP_LABELS, RAINBOW, new_figure, nothing_here, saved
from src.utils.gradient_log import GROUPS, GradientLog, load_gradient_log_from_csv

__all__ = [
    "generate_summary_report",
    "load_gradient_log_from_csv",
    "plot_gradient_evolution",
    "plot_gradient_norms",
    "plot_layer_comparison",
    "plot_layer_heatmap",
    "plot_training_loss",
]

_PARTS = {"all": "attention and MLP", "attention": "attention", "mlp": "MLP"}
_LOGS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

SavePath = str | os.PathLike[str] | None
"""File of a picture, by its ending; None writes none."""


def plot_training_loss(
    train: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    *,
    title: str = "Loss",
    save_path: SavePath = None,
) -> Figure:
    """Training (blue) and validation loss (orange), the lowest point of each marked.

    Args:
        train: Step and loss.
        validation: Step and loss; may be empty.
        title: Line above the picture.
        save_path: The file.
    """
    figure = new_figure(7.2, 4.2, title)
    axes = figure.add_subplot()
    curves = (("training", train, "#1f77b4", 0.09), ("validation", validation, "#ff7f0e", 0.03))
    for name, points, colour, height in curves:
        if not points:
            continue
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, color=colour, label=name, marker="o", markersize=2.5)
        at = int(np.argmin(losses))
        axes.annotate(
            f"lowest {name}: {losses[at]:.4f} at step {steps[at]:,}",
            (steps[at], losses[at]),
            xytext=(0.02, height),
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 0.6, "alpha": 0.7},
        )
    axes.margins(y=0.2)
    _steps_below(axes)
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False)
    return saved(figure, save_path)


def plot_gradient_norms(
    logs: GradientLog | Mapping[str, GradientLog],
    title: str = "Gradient norms",
    save_path: SavePath = None,
) -> Figure:
    """Gradient norm per group over the steps: of one log together, of several side by side.

    Args:
        logs: One log: a line per group with parameters, and the total. Several by name: a panel per
            group that any of them trained, with a line per log.
        title: Line above the picture.
        save_path: The file.

    Raises:
        ExperimentError: There is no log.
    """
    if isinstance(logs, GradientLog):
        figure = new_figure(7.2, 4.2, title)
        axes = figure.add_subplot()
        for group in (*logs.trained, "total"):
            wide = 2.2 if group == "total" else 1.2
            dashes = (0, (4, 2)) if group == "total" else "-"
            axes.plot(
                logs.steps,
                logs.groups[group],
                color=COLOURS[group],
                linewidth=wide,
                linestyle=dashes,
                label=GROUP_LABELS[group],
            )
        axes.set_ylim(bottom=0)
        axes.set_ylabel("gradient norm before clipping")
        _steps_below(axes)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return saved(figure, save_path)
    if not logs:
        raise ExperimentError("found no gradient log to draw")
    shown = [name for name in GROUPS if any(name in log.trained for log in logs.values())]
    figure = new_figure(3.4 * (len(shown) + 1), 3.8, title)
    panels = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    for axes, group in zip(panels, (*shown, "total"), strict=True):
        for at, (name, log) in enumerate(logs.items()):
            if group in (*log.trained, "total"):
                colour = _LOGS[at % len(_LOGS)]
                axes.plot(log.steps, log.groups[group], color=colour, label=name)
        axes.set_title(GROUP_LABELS[group], fontsize=9)
        axes.set_ylim(bottom=0)
        _steps_below(axes)
    panels[0].set_ylabel("gradient norm before clipping")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return saved(figure, save_path)


def plot_layer_heatmap(
    log: GradientLog, title: str = "Gradient norm per block", save_path: SavePath = None
) -> Figure:
    """Three maps, blocks by steps: both parts, attention, MLP.

    Raises:
        ExperimentError: The log has no blocks.
    """
    _needs_blocks(log)
    figure = new_figure(7.6, 7.6, title)
    for axes, (part, name) in zip(figure.subplots(3, 1), _PARTS.items(), strict=True):
        axes.set_title(name, fontsize=9, loc="left")
        table = log.block_norms(part).T
        if not np.nanmax(table, initial=0.0) > 0:
            nothing_here(axes, f"no {name} parameter was trained")
            continue
        norm = Normalize(0.0, float(np.nanmax(table)))
        drawn = axes.imshow(table, aspect="auto", cmap="viridis", norm=norm, interpolation="none")
        places = np.unique(np.linspace(0, len(log.steps) - 1, 6).round().astype(int))
        axes.set_xticks(places, [f"{log.steps[at]:,}" for at in places])
        every = max(1, -(-len(log.blocks) // 12))
        axes.set_yticks(range(0, len(log.blocks), every), [f"L{n}" for n in log.blocks[::every]])
        axes.set_xlabel("step")
        figure.colorbar(drawn, ax=axes, label="norm", pad=0.01)
    return saved(figure, save_path)


def plot_layer_comparison(
    log: GradientLog, title: str = "Gradient per block", save_path: SavePath = None
) -> Figure:
    """Attention and MLP of each block over all steps: stacked, and side by side.

    Stacked are mean squares, which add up to that of the block; side by side are their roots.

    Raises:
        ExperimentError: The log has no blocks.
    """
    _needs_blocks(log)
    figure = new_figure(7.6, 5.8, title)
    stacked, beside = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(log.blocks))
    below = np.zeros(len(places))
    parts = [part for part in ("attention", "mlp") if np.nanmax(log.layers[part], initial=0) > 0]
    wide = 0.8 / max(1, len(parts))
    for at, part in enumerate(parts):
        squares = _mean_squares(log.layers[part])
        look = {"color": COLOURS[part], "label": GROUP_LABELS[part]}
        stacked.bar(places, squares, 0.8, bottom=below, **look)
        beside.bar(places + wide * (at - (len(parts) - 1) / 2), np.sqrt(squares), wide, **look)
        below = below + squares
    stacked.set_ylabel("mean squared norm")
    beside.set_ylabel("root mean square norm")
    every = max(1, -(-len(log.blocks) // 12))
    beside.set_xticks(places[::every], [f"L{number}" for number in log.blocks[::every]])
    stacked.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return saved(figure, save_path)


def plot_gradient_evolution(
    log: GradientLog, title: str = "Gradient norms from early to late", save_path: SavePath = None
) -> Figure:
    """Norms of all blocks at seven steps, the first and the last among them, from red to violet.

    Raises:
        ExperimentError: The log has no blocks.
    """
    _needs_blocks(log)
    figure = new_figure(7.2, 4.2, title)
    axes = figure.add_subplot()
    chosen = np.unique(np.linspace(0, len(log.steps) - 1, 7).round().astype(int))
    colours = np.linspace(0, len(RAINBOW) - 1, len(chosen)).round().astype(int)
    norms = log.block_norms("all")
    for at, colour in zip(chosen, colours, strict=True):
        axes.plot(
            log.blocks,
            norms[at],
            color=RAINBOW[colour],
            marker="o",
            markersize=3,
            label=f"step {log.steps[at]:,}",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block")
    axes.set_ylabel("gradient norm, attention and MLP")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return saved(figure, save_path)


def generate_summary_report(
    logs: GradientLog | Mapping[str, GradientLog], save_path: SavePath = None
) -> dict[str, dict[str, Any]]:
    """The logs in a few numbers: mean, std, max, min and peak step of each trained group.

    Args:
        logs: One log, or several by name.
        save_path: A JSON file for the same.

    Returns:
        By the name of the log and then of the group; a single log has the name ``"log"``.
    """
    named = {"log": logs} if isinstance(logs, GradientLog) else logs
    report = {
        name: {group: _figures(log, group) for group in (*log.trained, "total")}
        for name, log in named.items()
    }
    if save_path is not None:
        write_json(save_path, report)
    return report


def _figures(log: GradientLog, group: str) -> dict[str, float | int | None]:
    norms = log.groups[group]
    known = norms[np.isfinite(norms)]
    if not known.size:
        return dict.fromkeys(("mean", "std", "max", "min", "peak_step"))
    return {
        "mean": float(known.mean()),
        "std": float(known.std()),
        "max": float(known.max()),
        "min": float(known.min()),
        "peak_step": int(log.steps[int(np.nanargmax(norms))]),
    }


def _mean_squares(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(norms)
    squares = np.where(known, norms, 0.0) ** 2
    return np.asarray(squares.sum(axis=0) / np.maximum(1, known.sum(axis=0)))


def _steps_below(axes: Any) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _needs_blocks(log: GradientLog) -> None:
    if not log.blocks:
        raise ExperimentError("this log has no blocks; it was made with --no_layer_norm")
