"""Gradient norms in three dimensions: blocks, steps, and the norm as height.

For the eye of a reader who asks for it; a heatmap shows the same and hides nothing behind itself.
"""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.plot.choice import Choice
from moetrace.plot.drawing import names_of, ramp
from moetrace.plot.gradients import BlockNorms, block_norms

__all__ = ["draw_bars3d", "draw_surface", "draw_wireframe"]

MOST_ROWS = 60
MOST_BARS = 16


def draw_surface(figure: Any, choice: Choice) -> None:
    """A surface over blocks and steps.

    Raises:
        ValueError: The run holds no gradients, or fewer than two blocks or windows.
    """
    found = _grid(choice)
    axes = _axes(figure, choice, found)
    x, y, z = _mesh(found, MOST_ROWS)
    axes.plot_surface(
        x, y, z, cmap="cividis", rcount=MOST_ROWS, ccount=MOST_ROWS, linewidth=0.15, edgecolor="w"
    )


def draw_wireframe(figure: Any, choice: Choice) -> None:
    """The same as a net of lines.

    Raises:
        ValueError: The run holds no gradients, or fewer than two blocks or windows.
    """
    found = _grid(choice)
    axes = _axes(figure, choice, found)
    x, y, z = _mesh(found, MOST_ROWS)
    axes.plot_wireframe(x, y, z, color="#0072b2", linewidth=0.6, rcount=30, ccount=30)


def draw_bars3d(figure: Any, choice: Choice) -> None:
    """The same as bars, at up to sixteen windows.

    Raises:
        ValueError: The run holds no gradients.
    """
    found = block_norms(choice)
    axes = _axes(figure, choice, found)
    x, y, z = _mesh(found, MOST_BARS)
    heights = np.nan_to_num(z.ravel())
    colours = ramp("cividis")(heights / max(float(heights.max(initial=0.0)), 1e-30))
    deep = 0.6 * float(np.ptp(found.steps) or 1) / max(1, z.shape[0])
    axes.bar3d(
        x.ravel() - 0.3, y.ravel() - deep / 2, 0.0, 0.6, deep, heights, color=colours, shade=True
    )


def _grid(choice: Choice) -> BlockNorms:
    found = block_norms(choice)
    if len(found.blocks) < 2 or len(found.steps) < 2:
        raise ValueError(
            f"found {len(found.blocks)} blocks and {len(found.steps)} windows with gradients; a "
            "surface takes two of each, --kind gradient-bars takes one"
        )
    return found


def _axes(figure: Any, choice: Choice, found: BlockNorms) -> Any:
    importlib.import_module("mpl_toolkits.mplot3d")  # brings the projection
    axes = figure.add_subplot(projection="3d")
    every = max(1, -(-len(found.blocks) // 10))
    places = range(0, len(found.blocks), every)
    names = names_of(found.blocks)
    axes.set_xticks(list(places), [names[place] for place in places])
    ticker = importlib.import_module("matplotlib.ticker")
    axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("block")
    axes.set_ylabel("optimizer step")
    axes.set_zlabel("gradient norm")
    axes.set_zlim(0, max(float(np.nanmax(found.norms["all"], initial=0.0)), 1e-12))
    axes.view_init(elev=28, azim=-52)
    axes.set_box_aspect((1.25, 1.25, 0.8), zoom=1.12)
    figure.suptitle(choice.title("Gradient norms per block"), x=0.01, ha="left")
    return axes


def _mesh(
    found: BlockNorms, most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Blocks, steps and norms as grids, the last window always among at most ``most``."""
    rows = np.unique(
        np.linspace(0, len(found.steps) - 1, min(most, len(found.steps))).round().astype(int)
    )
    x, y = np.meshgrid(
        np.arange(len(found.blocks), dtype=np.float64), found.steps[rows].astype(np.float64)
    )
    return x, y, found.norms["all"][rows]
