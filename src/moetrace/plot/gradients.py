"""Pictures of gradient norms: per group, per block, and how they evolve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.export.gradient_analysis import GROUPS_SHOWN, GradientRow, blocks_of, gradient_rows
from moetrace.parameter_groups import GROUPS
from moetrace.plot.choice import Choice
from moetrace.plot.drawing import LINES, QUIET, names_of, ramp, step_axis, thinned

__all__ = [
    "BlockNorms",
    "block_norms",
    "draw_gradient_bars",
    "draw_gradient_heatmap",
    "draw_gradient_steps",
    "draw_gradients",
]

SEVEN = ("#dc050c", "#f1932d", "#d9b310", "#4eb265", "#2a9d8f", "#5289c7", "#882e72")
"""From early (red) to late (violet), by hue as is usual; each has a marker of its own too."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

PARTS = ("attention", "mlp")
BLOCKS_SHOWN = {"all": "all parameters of the block", "attention": "attention", "mlp": "MLP"}


@dataclass(frozen=True, slots=True, eq=False)
class BlockNorms:
    """Gradient norms of the blocks of a model over the windows.

    Letters: S windows, L blocks.

    Attributes:
        steps: Last step of each window, shape ``(S,)``.
        blocks: Dotted names of the blocks, in the order of their numbers.
        norms: By part (``"all"``, ``"attention"``, ``"mlp"``), shape ``(S, L)``; NaN where no step
            of a window was finite.
    """

    steps: NDArray[np.int64]
    blocks: tuple[str, ...]
    norms: dict[str, NDArray[np.float64]]


def block_norms(choice: Choice) -> BlockNorms:
    """The gradient norms of the blocks that are to be shown.

    Routers, experts and shared experts count with ``mlp``, which is where they stand.

    Raises:
        ValueError: The run holds no gradients, or no such block.
    """
    rows = gradient_rows(choice.run)
    blocks = choice.matching(blocks_of(rows), of="gradients")
    groups = {"all": (), **{part: GROUPS_SHOWN[part] for part in PARTS}}
    norms = {
        part: np.array(
            [[_number(row.norm(*wanted, layer=block)) for block in blocks] for row in rows]
        )
        for part, wanted in groups.items()
    }
    return BlockNorms(np.array([row.step for row in rows]), tuple(blocks), norms)


def draw_gradients(figure: Any, choice: Choice) -> None:
    """The gradient norm of each group of parameters over the steps, and of all together.

    Raises:
        ValueError: The run holds no gradients.
    """
    rows = gradient_rows(choice.run)
    steps = np.array([row.step for row in rows])
    axes = figure.add_subplot()
    groups = [group for group in GROUPS if any(_has(row, group) for row in rows)]
    for group, colour, marker in zip(groups, (*LINES[:6], "#7f7f7f"), MARKERS, strict=False):
        values = np.array([_number(row.norm(group)) for row in rows])
        axes.plot(steps, values, color=colour, label=group, **_dots(marker, len(steps)))
    total = np.array([_number(row.norm()) for row in rows])
    axes.plot(steps, total, color="#000000", linewidth=2.0, label="total")
    axes.set_ylabel("gradient norm")
    axes.set_ylim(0, None)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    step_axis(axes, steps)
    axes.set_title(choice.title(f"Gradient norms, {_measured(rows)}"))


def draw_gradient_heatmap(figure: Any, choice: Choice) -> None:
    """Three heatmaps, blocks by windows: all parameters, attention, MLP.

    Raises:
        ValueError: The run holds no gradients, or no such block.
    """
    found = block_norms(choice)
    rows = figure.subplots(3, 1)
    for axes, (part, title) in zip(rows, BLOCKS_SHOWN.items(), strict=True):
        table = np.ma.masked_invalid(found.norms[part].T)
        most = float(np.max(table)) if table.count() else 1.0
        picture = axes.imshow(
            table, aspect="auto", cmap=ramp("cividis"), vmin=0.0, vmax=most or 1.0
        )
        thinned(axes.yaxis, names_of(found.blocks), title="block", most=12)
        places = np.unique(np.linspace(0, len(found.steps) - 1, 6).round().astype(int))
        axes.set_xticks(places, [f"{found.steps[at]:,}" for at in places])
        axes.set_title(title)
        bar = figure.colorbar(picture, ax=axes, pad=0.015, aspect=12)
        bar.set_label("gradient norm")
        bar.outline.set_visible(False)
    rows[-1].set_xlabel("optimizer step")
    figure.suptitle(choice.title("Gradient norms per block"), x=0.01, ha="left")


def draw_gradient_bars(figure: Any, choice: Choice) -> None:
    """Mean gradient norm of each block: attention and MLP stacked, and side by side.

    What is stacked are squares, which add up; norms do not.

    Raises:
        ValueError: The run holds no gradients, or no such block.
    """
    found = block_norms(choice)
    means = {part: _mean_square(found.norms[part]) for part in (*PARTS, "all")}
    places = np.arange(len(found.blocks))
    stacked, beside = figure.subplots(2, 1, sharex=True)
    rest = np.maximum(0.0, means["all"] - means["attention"] - means["mlp"])
    bottom = np.zeros(len(places))
    heights = {"attention": means["attention"], "MLP": means["mlp"], "other": rest}
    for (label, height), colour in zip(heights.items(), (*LINES[:2], QUIET), strict=True):
        stacked.bar(places, height, bottom=bottom, color=colour, width=0.8, label=label)
        bottom = bottom + height
    stacked.set_title("squared norm, stacked")
    stacked.set_ylabel("mean squared norm")
    stacked.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    for at, (part, colour) in enumerate(zip(PARTS, LINES, strict=False)):
        beside.bar(places + 0.4 * at - 0.2, np.sqrt(means[part]), color=colour, width=0.38)
    beside.set_title("norm, side by side")
    beside.set_ylabel("root mean square norm")
    thinned(beside.xaxis, names_of(found.blocks), title="block")
    figure.suptitle(choice.title("Gradient norms per block"), x=0.01, ha="left")


def draw_gradient_steps(figure: Any, choice: Choice) -> None:
    """Norms of all blocks at seven windows, evenly spaced, from early (red) to late (violet).

    Raises:
        ValueError: The run holds no gradients, or no such block.
    """
    found = block_norms(choice)
    chosen = np.unique(np.linspace(0, len(found.steps) - 1, 7).round().astype(int))
    colours = np.linspace(0, 6, len(chosen)).round().astype(int)
    places = np.arange(len(found.blocks))
    panels = figure.subplots(1, 3)
    for axes, (part, title) in zip(panels, BLOCKS_SHOWN.items(), strict=True):
        for at, colour in zip(chosen, colours, strict=True):
            axes.plot(
                places,
                found.norms[part][at],
                color=SEVEN[colour],
                marker=MARKERS[colour],
                markersize=3.5,
                label=f"step {found.steps[at]:,}",
            )
        thinned(axes.xaxis, names_of(found.blocks), title="block", most=12)
        axes.set_ylim(0, None)
        axes.set_title(title)
    panels[0].set_ylabel("gradient norm")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.suptitle(choice.title("Evolution of the gradient norms"), x=0.01, ha="left")


def _number(norm: float | None) -> float:
    return np.nan if norm is None else norm


def _has(row: GradientRow, group: str) -> bool:
    return any(record.group == group for record in row.records)


def _measured(rows: Sequence[GradientRow]) -> str:
    kinds = {record.measured for row in rows for record in row.records}
    return "before clipping" if kinds == {"pre_clip"} else "as the optimizer got them"


def _mean_square(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(norms)
    squares = np.where(known, norms, 0.0) ** 2
    return np.asarray(squares.sum(axis=0) / np.maximum(1, known.sum(axis=0)))


def _dots(marker: str, steps: int) -> dict[str, Any]:
    every = max(1, steps // 12)
    return {"marker": marker, "markersize": 3.5, "markevery": every}
