"""How a run and a snapshot show themselves in a notebook: a few lines of HTML, and one picture.

Nothing is fetched and nothing runs: the styles stand in the elements and the picture is a data
address, so that it shows offline, in a file that was sent, and where scripts are not trusted. Names
in it are a stranger's text and are escaped.
"""

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from moetrace.printable import printable
from moetrace.routing_stats import RoutingStats

__all__ = ["heat_png", "layers_html", "notebook_html"]

LISTED = 8
"""Layers of the table: those furthest over their noise floor."""

MOST_ROWS, MOST_COLUMNS = 128, 512
"""Cells of the picture; of more experts the cell shows the one furthest from fair."""

SHADES = 63
CLIP = 4.0
STOPS = np.array(
    [(11, 79, 138), (63, 131, 189), (156, 195, 224), (241, 239, 233), (243, 189, 132),
     (217, 119, 43), (143, 58, 6)],
    dtype=np.float64,
)  # fmt: skip
BLANK, DEAD = (255, 255, 255), (21, 23, 27)

CELL = 'style="text-align:right;padding:1px 10px;font-variant-numeric:tabular-nums"'
NAME = 'style="text-align:left;padding:1px 10px;font-weight:400"'


def notebook_html(title: str, facts: Iterable[tuple[str, str]], *parts: str) -> str:
    """A heading, labelled facts, and further parts that are HTML already.

    >>> notebook_html("<run>", [("windows", "3")])
    '<div><b>&lt;run&gt;</b> <span>windows 3</span></div>'
    """
    said = ", ".join(
        f"<span>{escape(printable(f'{name} {value}'))}</span>" for name, value in facts
    )
    return f"<div><b>{escape(printable(title))}</b> {said}{''.join(parts)}</div>"


def layers_html(layers: Sequence[RoutingStats]) -> str:
    """The heatmap of load over fair share, and the layers furthest over their noise floor.

    Cost: one `RoutingStats.metrics` per layer.
    """
    if not layers:
        return "<p>no layer</p>"
    picture = base64.b64encode(heat_png([stats.tokens_per_expert for stats in layers]))
    rows = [(stats, stats.metrics()) for stats in layers]
    rows.sort(key=lambda row: -(row[1]["max_vio_excess"] or 0.0))
    shown = "".join(_row(stats, metrics) for stats, metrics in rows[:LISTED])
    more = len(rows) - LISTED
    rest = f"<p>and {more} more, less uneven</p>" if more > 0 else ""
    heads = "".join(
        f"<th {CELL}>{head}</th>"
        for head in ("tokens", "load CV", "MaxVio", "noise floor", "entropy", "dead")
    )
    label = f"load over fair share, {len(layers)} layers by experts"
    tall = min(240, max(16, 12 * len(layers)))
    return (
        f'<p style="margin:6px 0 2px">{label}: blue below, orange above, black without a token</p>'
        f'<img alt="{label}" width="640" height="{tall}" style="image-rendering:pixelated" '
        f'src="data:image/png;base64,{picture.decode("ascii")}">'
        f'<table style="border-collapse:collapse;margin-top:4px"><thead><tr><th {NAME}>layer</th>'
        f"{heads}</tr></thead><tbody>{shown}</tbody></table>{rest}"
    )


def heat_png(counts: Sequence[NDArray[np.int64]]) -> bytes:
    r"""A PNG of one pixel per layer and expert, in colours of log2(load / fair share).

    >>> heat_png([np.array([3, 1])])[:8]
    b'\x89PNG\r\n\x1a\n'
    """
    layers = list(counts)[:MOST_ROWS]
    per_cell = -(-max(load.size for load in layers) // MOST_COLUMNS)
    wide = -(-max(load.size for load in layers) // per_cell)
    cells = np.zeros((len(layers), wide), np.uint8)
    for row, load in enumerate(layers):
        cells[row, : -(-load.size // per_cell)] = _cells(load, per_cell)
    position = np.linspace(0, 1, SHADES)
    ramp = np.stack(
        [np.interp(position, np.linspace(0, 1, len(STOPS)), STOPS[:, c]) for c in range(3)], axis=1
    )
    palette = np.vstack([[BLANK], [DEAD], ramp.round()]).astype(np.uint8)
    lines = np.hstack([np.zeros((len(layers), 1), np.uint8), cells])
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", wide, len(layers), 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette.tobytes()),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _cells(load: NDArray[np.int64], per_cell: int) -> NDArray[np.uint8]:
    """Places in the palette: 0 nothing, 1 no token, from 2 on the load."""
    total = int(load.sum())
    if not total:
        return np.zeros(-(-load.size // per_cell), np.uint8)
    with np.errstate(divide="ignore"):
        logs = np.log2(load * (load.size / total))
    found = []
    for start in range(0, load.size, per_cell):
        part = logs[start : start + per_cell]
        value = part[np.abs(part).argmax()]
        shade = (np.clip(value, -CLIP, CLIP) + CLIP) / (2 * CLIP) * (SHADES - 1)
        found.append(1 if value == -np.inf else 2 + round(float(shade)))
    return np.array(found, np.uint8)


def _row(stats: RoutingStats, metrics: dict[str, float | None]) -> str:
    dead = metrics["dead_experts"]
    texts = (
        f"{stats.tokens:,}",
        *(_number(metrics[name]) for name in ("load_cv", "max_vio", "max_vio_floor")),
        _number(metrics["routing_entropy"]),
        f"{'-' if dead is None else f'{dead:.0f}'}/{stats.num_experts}",
    )
    cells = "".join(f"<td {CELL}>{text}</td>" for text in texts)
    return f"<tr><th {NAME}>{escape(printable(stats.layer))}</th>{cells}</tr>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
