"""What all pictures share: colours, type, names, and how a figure becomes a file.

Figures are made without pyplot: nothing global is changed, no window is opened, and several threads
may draw at once. Text stays text in SVG, and no text of a run is read as mathematics.
"""

import importlib
import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetrace.printable import printable
from moetrace.report.names import short_names

__all__ = [
    "BLANK",
    "DEAD",
    "FLOOR",
    "LINES",
    "QUIET",
    "SUFFIXES",
    "drawing",
    "end_labels",
    "names_of",
    "plain",
    "ramp",
    "save",
    "step_axis",
    "thinned",
]

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours of lines that are told apart (Okabe and Ito); people who see red and green alike too."""

QUIET = "#b4b4b4"
"""The colour of what is not singled out."""

FLOOR = "#6a6a6a"
"""The colour of what chance alone would show; always dashed."""

DEAD = "#000000"
"""The colour of an expert without a token, on no scale of ours."""

BLANK = "#e2e2e2"
"""The colour of a place without a number."""

SUFFIXES = (".png", ".svg")
"""Formats of a picture, by the ending of its file."""

DPI = 200
MOST_NAMES = 40
APART = 0.055

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": False,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.titlesize": 10.5,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "moetrace",  # the same run gives the same file, byte for byte
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.usetex": False,
    "image.interpolation": "nearest",
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """A figure to draw on, in our style while the block runs; `save` belongs into it.

    Args:
        width: Inches.
        height: Inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
        figure = importlib.import_module("matplotlib.figure").Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            "a plot needs matplotlib, which is not installed; "
            "pip install 'moetrace[plot]' brings it"
        ) from error
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # a name in letters that the font lacks is drawn as boxes; that is no news to a caller
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield figure(figsize=(width, height), layout="constrained")


def ramp(name: str, *, under: str | None = None) -> Any:
    """A scale of colours of matplotlib, grey where there is no number.

    Args:
        name: Its name, such as ``"cividis"``.
        under: The colour of what lies below the scale.
    """
    colours = importlib.import_module("matplotlib").colormaps[name]
    return colours.with_extremes(bad=BLANK, under=under)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG or SVG, by the ending of the file; one that is there is replaced.

    Raises:
        ValueError: The file ends in neither.
        OSError: It cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"found {path.name!r}; a plot ends in {' or '.join(SUFFIXES)}")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    home, kind = {
        ".png": ("matplotlib.backends.backend_agg", "FigureCanvasAgg"),
        ".svg": ("matplotlib.backends.backend_svg", "FigureCanvasSVG"),
    }[suffix]
    getattr(importlib.import_module(home), kind)(figure)
    metadata = {"Date": None} if suffix == ".svg" else {"Software": "moetrace"}
    try:
        figure.savefig(os.fspath(draft), format=suffix[1:], dpi=DPI, metadata=metadata)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def names_of(layers: Sequence[str]) -> list[str]:
    """What tells the layers of a picture apart, fit to be drawn.

    >>> names_of(["model.layers.0.mlp", "model.layers.11.mlp"])
    ['0', '11']
    """
    return [plain(name) for name in short_names([printable(layer) for layer in layers])]


def plain(text: str) -> str:
    """A name that fits into a picture: what would act is spelled out, what is long is cut.

    >>> plain("a" * 40)
    'aaaaaaaaaaaaaaa...aaaaaaaaaaaa'
    """
    shown = printable(text)
    return shown if len(shown) <= 30 else f"{shown[:15]}...{shown[-12:]}"


def thinned(axis: Any, names: Sequence[str], *, title: str, most: int = MOST_NAMES) -> None:
    """Names along an axis, as many of them as can be read.

    Args:
        axis: The axis, ``axes.yaxis`` or ``axes.xaxis``; one name per whole number from 0.
        names: The names.
        title: What they are.
        most: Names that there is room for; along the bottom, names of two characters.
    """
    if axis.axis_name == "x":
        most = max(2, 3 * most // (1 + max(map(len, names), default=2)))
    every = max(1, -(-len(names) // most))
    places = list(range(0, len(names), every))
    axis.set_ticks(places, [names[place] for place in places])
    axis.set_label_text(title)


def step_axis(axes: Any, steps: NDArray[Any]) -> None:
    """The steps along the bottom of a plot of curves, as whole numbers."""
    ticker = importlib.import_module("matplotlib.ticker")
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if len(steps) > 1:
        axes.set_xlim(float(steps[0]), float(steps[-1]))


def end_labels(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines, moved apart where they would overlap.

    Args:
        axes: Where the lines are; its limits must be final.
        ends: Last value, name and colour of each line.
    """
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        low, high = np.log10(low), np.log10(high)
        ends = [(float(np.log10(value)), name, colour) for value, name, colour in ends if value > 0]
    ordered = sorted(ends)
    places: list[float] = []
    for value, _, _ in ordered:
        wanted = (value - low) / (high - low)
        places.append(max(wanted, places[-1] + APART) if places else wanted)
    over = max(0.0, (places[-1] if places else 0.0) - 1.0)
    for place, (_, name, colour) in zip(places, ordered, strict=True):
        axes.annotate(
            name,
            (1.0, place - over),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            ha="left",
            fontsize=7.5,
            color=colour,
        )
