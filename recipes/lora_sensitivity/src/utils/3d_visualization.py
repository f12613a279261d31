"""Gradient norms in three dimensions: blocks, steps, and the norm as height.

```
python -m src.utils.3d_visualization --input results/e2e_all/gradient_analysis \
    --output results/e2e_all/3d_plots --type all
```
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits import mplot3d  # type: ignore[import-untyped]

from src.errors import ExperimentError
from src.utils.drawing import new_figure, saved
from src.utils.gradient_log import GradientLog, load_gradient_log_from_csv

__all__ = ["TYPES", "draw", "main"]

TYPES = ("surface", "wireframe", "bars")
"""Forms of the picture."""

_MODULES = {"all": "attention and MLP", "attention": "attention", "mlp": "MLP"}
_MOST_ROWS = {"surface": 60, "wireframe": 30, "bars": 16}

assert mplot3d  # importing it is what makes the projection known


def draw(log: GradientLog, kind: str, *, module: str = "all") -> Figure:
    """One picture.

    Args:
        log: A log with blocks.
        kind: One of `TYPES`.
        module: ``"all"``, ``"attention"`` or ``"mlp"``.

    Raises:
        ExperimentError: The log has no blocks, none of them has such parameters, or there are too
            few of them for a surface.
    """
    if not log.blocks:
        raise ExperimentError("this log has no blocks; it was made with --no_layer_norm")
    norms = np.nan_to_num(log.block_norms(module))
    if not norms.max(initial=0.0) > 0:
        raise ExperimentError(f"no {_MODULES[module]} parameter was trained in this experiment")
    if kind != "bars" and min(norms.shape) < 2:
        raise ExperimentError(
            f"found {norms.shape[0]} steps and {norms.shape[1]} blocks; a {kind} takes two of "
            "each, --type bars takes one"
        )
    most = min(_MOST_ROWS[kind], len(log.steps))
    rows = np.unique(np.linspace(0, len(log.steps) - 1, most).round().astype(int))
    x, y = np.meshgrid(np.array(log.blocks, float), log.steps[rows].astype(float))
    z = norms[rows]
    figure = new_figure(7.6, 5.6, f"Gradient norm of {_MODULES[module]}, by block and step")
    axes: Any = figure.add_subplot(projection="3d")
    if kind == "surface":
        axes.plot_surface(x, y, z, cmap="viridis", linewidth=0.2, edgecolor="w")
    elif kind == "wireframe":
        axes.plot_wireframe(x, y, z, color="#0072b2", linewidth=0.8)
    else:
        deep = 0.6 * float(np.ptp(log.steps) or 1) / len(rows)
        heights = z.ravel()
        colours = colormaps["viridis"](heights / heights.max())
        axes.bar3d(x.ravel() - 0.3, y.ravel() - deep / 2, 0, 0.6, deep, heights, color=colours)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("block")
    axes.set_ylabel("step")
    axes.set_zlabel("gradient norm")
    axes.set_zlim(0, float(z.max()))
    axes.view_init(elev=28, azim=-52)
    axes.set_box_aspect((1.2, 1.2, 0.8), zoom=1.0)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the pictures of a log; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m src.utils.3d_visualization", description="Gradient norms in 3-D."
    )
    parser.add_argument("--input", required=True, help="path of the log without .group_norms.csv")
    parser.add_argument("--output", required=True, help="folder of the pictures")
    parser.add_argument("--type", default="bars", choices=[*TYPES, "all"], help="form (bars)")
    parser.add_argument("--module", default="all", choices=list(_MODULES), help="parameters (all)")
    parser.add_argument(
        "--no-interactive", action="store_true", help="no window; there never is one"
    )
    asked = parser.parse_args(arguments)
    try:
        log = load_gradient_log_from_csv(asked.input)
        for kind in TYPES if asked.type == "all" else (asked.type,):
            path = Path(asked.output) / f"gradient_3d_{kind}.png"
            saved(draw(log, kind, module=asked.module), path)
            print(path)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
