"""What all pictures share: colours, figures without a window, and files."""

import os
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["COLOURS", "GROUP_LABELS", "RAINBOW", "new_figure", "nothing_here", "saved"]

COLOURS = {
    "embed": "#009e73",
    "attention": "#0072b2",
    "mlp": "#d55e00",
    "lm_head": "#cc79a7",
    "total": "#000000",
}
"""One per group; people who see red and green alike tell them apart too."""

GROUP_LABELS = {
    "embed": "embedding",
    "attention": "attention",
    "mlp": "MLP",
    "lm_head": "LM head",
    "total": "total",
}

RAINBOW = ("#dc050c", "#f1932d", "#d9b310", "#4eb265", "#2a9d8f", "#5289c7", "#882e72")
"""From early (red) to late (violet)."""


def new_figure(width: float, height: float, title: str | None = None) -> Figure:
    """A figure that opens no window and changes no setting of the process."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def nothing_here(axes: Any, text: str) -> None:
    """Say in a panel why it is empty, rather than draw zeros."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#6a6a6a")
    axes.set_xticks([])
    axes.set_yticks([])


def saved(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Write the figure where a path is given; returns it."""
    if path is not None:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)
    return figure
