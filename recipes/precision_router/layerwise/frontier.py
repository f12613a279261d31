"""A picture of cross-entropy over bits: what a router has to lie below."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Point", "draw_frontier"]

_STYLES: dict[str, dict[str, Any]] = {
    "fixed": {"color": "#5b6770", "marker": "o", "linestyle": "-", "markersize": 6},
    "router": {"color": "#c2410c", "marker": "*", "linestyle": "none", "markersize": 15},
    "static": {"color": "#1d6fb8", "marker": "D", "linestyle": "none", "markersize": 7},
}
_LEGEND = {
    "fixed": "one precision in all layers",
    "router": "routers",
    "static": "static bits per layer",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One way to choose bits.

    Attributes:
        kind: ``"fixed"``, ``"router"`` or ``"static"``.
        bits: Average over layers.
        cross_entropy: Nats per token.
        label: A word beside it.
    """

    kind: str
    bits: float
    cross_entropy: float
    label: str


def draw_frontier(points: Sequence[Point], path: Path, *, title: str) -> Path:
    """Draw the points into a PNG of 900 x 560; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for kind, style in _STYLES.items():
        here = sorted(
            (point for point in points if point.kind == kind), key=lambda point: point.bits
        )
        if not here:
            continue
        axes.plot(
            [point.bits for point in here],
            [point.cross_entropy for point in here],
            label=_LEGEND[kind],
            zorder=2 if kind == "fixed" else 3,
            **style,
        )
        aside = 8 if kind == "fixed" else -8  # left of a point is where the line is not
        for point in here:
            axes.annotate(
                point.label,
                (point.bits, point.cross_entropy),
                textcoords="offset points",
                xytext=(aside, -14 if kind == "static" else 7),
                ha="left" if kind == "fixed" else "right",
                fontsize=9,
                color=style["color"],
            )
    axes.set_xlabel("average bits per weight (every layer counts the same)")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="#e3e6e8", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.1, y=0.12)
    axes.legend(frameon=False, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
