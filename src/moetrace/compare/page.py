"""A comparison as one HTML file: no script, no address of its own, nothing is requested."""

import base64
import hashlib
import math
import os
import secrets
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moetrace.compare.comparison import FIGURES, Comparison
from moetrace.compare.curves import curve, run_class
from moetrace.compare.heatmaps import experts_heat, spans_heat
from moetrace.compare.noise import expert_noise, times_noise
from moetrace.compare.text import CLEAR, in_words
from moetrace.printable import span_text
from moetrace.report.names import shown

__all__ = ["render_comparison", "write_comparison"]

MOST_EXPERTS = 20
MOST_CHANGES = 12

WORST = {
    "load_cv": ("CV of the load (0 is even)", np.nanmax),
    "max_vio": ("MaxVio: heaviest expert over its fair share, minus 1", np.nanmax),
    "routing_entropy": ("Token routing entropy, nats", np.nanmin),
    "dead_experts": ("Dead experts of a layer", np.nanmax),
}
"""Curves of the page: title, and which end is bad."""


def write_comparison(comparison: Comparison, out: str | os.PathLike[str]) -> Path:
    """Write a comparison as one self-contained HTML file.

    A page that is there already is replaced in one move.

    Args:
        comparison: What `moetrace.compare.compare_runs` found.
        out: The file to write.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(out)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_text(render_comparison(comparison), encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def render_comparison(comparison: Comparison) -> str:
    """A comparison as the text of one HTML page; names in it are text and nothing else."""
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    title = f"moetrace: {len(comparison.subjects)} runs compared"
    pairs = (_pair(comparison, other) for other in range(1, len(comparison.subjects)))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>",
            _runs(comparison),
            *pairs,
            _curves(comparison),
            _formulas(),
            "</body>\n</html>\n",
        ]
    )


def _runs(comparison: Comparison) -> str:
    rows = [
        f'<li><b class="{run_class(at)}">{subject.label}</b>'
        f" {escape(shown(subject.path))} "
        f'<span class="soft">{escape(shown(subject.run_id))}, {escape(shown(subject.model))}; '
        f"{subject.windows} windows, {subject.unmatched} of other steps</span></li>"
        for at, subject in enumerate(comparison.subjects)
    ]
    first, last = int(comparison.spans[0, 0]), int(comparison.spans[-1, 1])
    spans = f"{len(comparison.spans)} spans of steps that all runs have"
    scope = [
        f"phase {comparison.phase}: {spans}, {span_text(first, last)}",
        *(f"{layer} is left out: {why}" for layer, why in comparison.left_out.items()),
    ]
    told = "".join(f"<li>{escape(shown(line))}</li>" for line in scope)
    return f'<ul class="runs">{"".join(rows)}</ul><ul class="scope soft">{told}</ul>'


def _pair(comparison: Comparison, other: int) -> str:
    label = comparison.subjects[other].label
    where = span_text(*map(int, comparison.spans[comparison.at]))
    parts = [
        f"<section><h2>{label} against A, {where}</h2>",
        _verdict(comparison, other),
        experts_heat(comparison, other, label),
        spans_heat(comparison, other) if len(comparison.spans) > 1 else "",
        _layers_table(comparison, other, label),
        _experts_table(comparison, other, label),
        "</section>",
    ]
    return "\n".join(filter(None, parts))


def _verdict(comparison: Comparison, other: int) -> str:
    changes = comparison.changes(other)
    clear = [item for item in changes if (item.times or 0.0) >= CLEAR]
    layers = {item.layer for item in clear}
    headline = (
        f"{len(layers)} of {len(comparison.layers)} layers differ by {CLEAR:g} times the noise "
        "or more."
        if layers
        else f"Nothing differs by {CLEAR:g} times its noise."
    )
    rows = "".join(f"<li>{escape(shown(in_words(item)))}</li>" for item in clear[:MOST_CHANGES])
    more = len(clear) - MOST_CHANGES
    rest = f'<p class="soft">and {more} more differences</p>' if more > 0 else ""
    return f'<div class="verdict"><p>{escape(headline)}</p><ul>{rows}</ul>{rest}</div>'


def _layers_table(comparison: Comparison, other: int, label: str) -> str:
    head = ["layer", "load moved", "by chance", "times"]
    head += [f"{name} {run}" for name in FIGURES for run in ("A", label)]
    rows: list[list[str]] = []
    for column, layer in enumerate(comparison.layers):
        moved = float(comparison.load_change[other, comparison.at, column])
        noise = float(comparison.load_noise[other, comparison.at, column])
        times = times_noise(moved, None if math.isnan(noise) else noise)
        row = [shown(layer), _number(moved, ".1%"), _number(noise, ".1%"), _number(times, ".1f")]
        for values in comparison.figures.values():
            row += [_number(float(values[run, comparison.at, column]), ".4g") for run in (0, other)]
        rows.append(row)
    return "<h3>Layer by layer</h3>" + _table(head, rows)


def _experts_table(comparison: Comparison, other: int, label: str) -> str:
    found: list[tuple[float, list[str]]] = []
    for layer in comparison.layers:
        first, second = comparison.shown[0][layer], comparison.shown[other][layer]
        shares = [stats.tokens_per_expert / max(1, stats.tokens) for stats in (first, second)]
        difference, noise = shares[1] - shares[0], expert_noise(first, second)
        times = np.divide(np.abs(difference), noise, out=np.zeros_like(difference), where=noise > 0)
        for expert in np.argsort(-times, kind="stable")[:MOST_EXPERTS].tolist():
            if times[expert] >= CLEAR:
                row = [shown(layer), f"{expert}", *(f"{share[expert]:.3%}" for share in shares)]
                found.append((-float(times[expert]), [*row, f"{times[expert]:.1f}"]))
    found.sort(key=lambda pair: pair[0])
    head = ["layer", "expert", "tokens that chose it, A", label, "times its noise"]
    title = "<h3>Experts that changed the most</h3>"
    if not found:
        return f"{title}<p class='soft'>None by {CLEAR:g} times its noise.</p>"
    return title + _table(head, [row for _, row in found[:MOST_EXPERTS]])


def _curves(comparison: Comparison) -> str:
    if len(comparison.spans) < 2:
        return ""
    labels = [subject.label for subject in comparison.subjects]
    drawn: list[str] = []
    for name, (title, worst) in WORST.items():
        values = comparison.figures[name]
        svg = curve(
            title,
            comparison.spans[:, 1],
            _over_layers(values, np.nanmedian),
            _over_layers(values, worst),
            labels,
        )
        if svg:
            drawn.append(f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>")
    return (
        "<section><h2>All runs over the steps</h2><p class='soft'>The median over the layers; "
        f"dashed, the worst layer.</p><div class='curves'>{''.join(drawn)}</div></section>"
    )


def _formulas() -> str:
    return (
        "<footer class='soft'><p>Load moved: half the sum over the experts of the difference of "
        "their load shares. By chance: sqrt((1 - K/E) E / (pi T K)) with T = 2 T1 T2 / (T1 + T2), "
        "two windows of one uniform router.</p><p>Noise of a figure: the median step of the "
        "difference from one span to the next, over 0.954; figures with a noise floor are "
        "compared by what exceeds it.</p><p>Noise of an expert: sqrt(q (1 - q) (1/T1 + 1/T2)), "
        "q the share of both runs' tokens together. All three take tokens for independent.</p>"
        f"<p>moetrace {escape(version('moetrace'))}</p></footer>"
    )


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _over_layers(values: NDArray[np.float64], reduce: object) -> NDArray[np.float64]:
    """One number per run and span; NaN where no layer has one."""
    known = np.isfinite(values).any(axis=2)
    found = np.full(known.shape, np.nan)
    assert callable(reduce)
    if known.any():
        found[known] = reduce(values[known], axis=-1)
    return found


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


@cache
def _style() -> str:
    return files("moetrace.compare").joinpath("page.css").read_text(encoding="utf-8")
