"""One frame as lines of text: what is wrong, alerts, heatmap, curves."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.text import Text

from moetrace.printable import printable, span_text
from moetrace.report.names import short_names, shown
from moetrace.report.payload import worst_layers
from moetrace.report.windows import Windows
from moetrace.watch.follower import View
from moetrace.watch.map import map_lines
from moetrace.watch.spark import sparkline

__all__ = ["screen", "view_record"]

TONES = {"bad": "bold red", "warn": "bold yellow", "note": "cyan", "good": "green"}
MARKS = {"bad": "!!", "warn": "! ", "note": "- ", "good": "ok"}

LATE = 5.0
"""Times the usual time between windows after which silence is told."""

LEAST = 30.0
"""Seconds of silence below which nothing is told, however short the windows are."""

ALERTS = 3
"""Lines of alerts."""

LEAST_MAP = 6
"""Layers of the map that are kept before something urgent is added."""

CURVES = (
    ("MaxVio", "max_vio", "max_vio_floor"),
    ("load CV", "load_cv", "load_cv_floor"),
    ("entropy", "routing_entropy", None),
)


def screen(
    view: View,
    *,
    width: int,
    height: int,
    colour: bool = True,
    ascii_only: bool = False,
    now: float | None = None,
) -> list[Text]:
    """A frame that fits ``width`` columns; at most ``height`` lines.

    Args:
        view: What is shown.
        width: Columns.
        height: Lines.
        colour: Whether cells are told apart by colour; otherwise by letters.
        ascii_only: Whether the terminal can only show ASCII.
        now: The clock, Unix seconds, to say how long nothing came; None says nothing about it.

    Returns:
        Lines, none wider than ``width``. Names in them are text, never markup.
    """
    top = list(_head(view, width, now))
    windows = view.windows
    if windows is None:
        top.append(Text("no window yet: the first is written when it closes"))
        return _fit(top, width, height)
    said = _said(view, width)
    alerts = _alerts(view)
    curves = list(_curves(windows, width, ascii_only=ascii_only))
    room = height - len(top) - len(said[0].lines) - len(alerts) - len(curves)
    # What is urgent goes before a larger map, a larger map before what is not.
    least = 1 + min(len(windows.layers), LEAST_MAP)
    for block in said[1:]:
        wanted = least if block.urgent else 1 + len(windows.layers)
        block.shown = room - len(block.lines) >= wanted
        room -= len(block.lines) if block.shown else 0
    lines = [*top, *(line for block in said if block.shown for line in block.lines), *alerts]
    if room >= 2 and windows.layers:
        lines += map_lines(windows, width, room, colour=colour, ascii_only=ascii_only)
    return _fit([*lines, *curves], width, height)


def view_record(view: View) -> dict[str, Any]:
    """What a frame shows, as plain numbers, strings, lists and dicts."""
    windows = view.windows
    return {
        "run_id": view.run.run_id,
        "finished": view.run.finished,
        "phase": None if windows is None else windows.phase,
        "windows": 0 if windows is None else len(windows),
        "steps": None if windows is None else windows.spans[-1].tolist(),
        "findings": [
            {"tone": item.tone, "text": item.text, "advice": item.advice} for item in view.findings
        ],
        "alerts": [
            {
                "kind": item.kind,
                "layer": item.layer,
                "phase": item.phase,
                "first_step": item.first_step,
                "last_step": item.last_step,
                "text": item.text,
                "ranks": list(item.ranks),
            }
            for item in view.alarms
        ],
        "layers": [] if windows is None else _layers(windows),
        "faults": list(view.run.faults),
    }


def _layers(windows: Windows) -> list[dict[str, Any]]:
    return [
        {
            "layer": layer.name,
            "tokens": int(windows.tokens[-1, at]),
            **{name: _number(table[-1, at]) for name, table in windows.metrics.items()},
        }
        for at, layer in enumerate(windows.layers)
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _head(view: View, width: int, now: float | None) -> Iterator[Text]:
    run, windows = view.run, view.windows
    line = Text.assemble(("moetrace ", "dim"), (shown(run.run_id), "bold"))
    model = run.manifest.get("model")
    if model and width >= 70:
        line.append(f"  {shown(model)}", "dim")
    yield line
    state = "finished" if run.finished else "open"
    if windows is None:
        yield Text(state)
        return
    parts = [
        f"{shown(windows.phase)} {span_text(*windows.spans[-1])}",
        "1 window" if len(windows) == 1 else f"{len(windows)} windows",
        *([f"{int(windows.tokens[-1].max()):,} tokens"] if windows.layers else []),
        state,
    ]
    line = Text(", ".join(parts))
    silence = _silence(view, now)
    if silence and line.cell_len + 2 + len(silence[0]) <= width:
        line.append(f", {silence[0]}", silence[1])
        silence = None
    yield line
    if silence:
        yield Text(*silence)
    if run.faults:
        text = f"{len(run.faults)} faults in the folder: {printable(run.faults[0])}"
        yield Text(text, "yellow")


def _silence(view: View, now: float | None) -> tuple[str, str] | None:
    """How long ago the newest window came, and whether that is long."""
    if now is None or view.run.finished or not view.wall_times:
        return None
    age = max(0.0, now - view.wall_times[-1])
    gaps = [b - a for a, b in zip(view.wall_times, view.wall_times[1:], strict=False) if b > a]
    usual = statistics.median(gaps[-20:]) if gaps else None
    text = f"last window {_span(age)} ago"
    if usual is not None and age > max(LEAST, LATE * usual):
        return f"{text}; one took {_span(usual)}: stalled?", "bold yellow"
    return text, ""


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


@dataclass(slots=True)
class _Block:
    """Lines that are shown together or not at all."""

    lines: list[Text]
    urgent: bool
    shown: bool = True


def _said(view: View, width: int) -> list[_Block]:
    """The findings, the most urgent first, and behind the first what to try."""
    blocks = []
    for at, finding in enumerate(view.findings):
        tone = TONES[finding.tone]
        text = Text(finding.text, tone if at == 0 else "")
        lines = list(_hung(text, MARKS[finding.tone], tone, width))
        blocks.append(_Block(lines, finding.tone in ("bad", "warn")))
        if finding.advice and at == 0:
            advice = list(_hung(Text(f"to try: {finding.advice}"), "", "", width))
            blocks.append(_Block(advice, urgent=True))
    # where there is no room for both, a second fault is worth more than advice on the first
    return sorted(blocks, key=lambda block: block is not blocks[0] and not block.urgent)


def _hung(text: Text, mark: str, style: str, width: int) -> Iterator[Text]:
    """Text folded behind a mark of two characters."""
    # a console of its own width folds at words, and long names where they must
    from rich.console import Console

    folder = Console(width=max(12, width), color_system=None, legacy_windows=False)
    for at, line in enumerate(text.wrap(folder, max(8, width - 3))):
        line.rstrip()
        yield Text.assemble((f"{mark:<2} " if at == 0 else "   ", style), line)


def _alerts(view: View) -> list[Text]:
    held = [alarm for alarm in view.alarms if alarm.last_step is None]
    if not view.alarms:
        return []
    if not held:
        last = max(view.alarms, key=lambda alarm: alarm.last_step or 0)
        text = f"no alert holds; the last, {last.title}, was over at step {last.last_step}"
        return [Text(text, "dim")]
    lines = [
        Text(f"alert since {alarm.first_step}: {alarm.text}", "red") for alarm in held[:ALERTS]
    ]
    if len(held) > ALERTS:
        lines[-1] = Text(
            f"and {len(held) - ALERTS + 1} more alerts since {held[ALERTS - 1].first_step}", "red"
        )
    return lines


def _curves(windows: Windows, width: int, *, ascii_only: bool) -> Iterator[Text]:
    """The worst layer's figures over the windows, each in a line."""
    worst = worst_layers(windows)
    if not worst:
        return
    at = worst[0]
    names = short_names([shown(layer.name) for layer in windows.layers])
    name = f"layer {names[at]}" if names[at].isdigit() else names[at]
    over = span_text(windows.spans[0, 0], windows.spans[-1, 1])
    yield Text(f"{name}, the worst, over {over}:", "dim")
    for title, metric, floor in CURVES:
        values = windows.metrics[metric][:, at]
        if np.isnan(values).all():
            continue
        text = f"{title:<8}{values[-1]:8.3f} "
        if floor is not None and width >= 60:
            text += f"(chance {windows.metrics[floor][-1, at]:.3f}) "
        elif width >= 60:
            text += " " * 15
        room = max(4, width - len(text))
        line = Text(text)
        line.append(sparkline(values.tolist(), room, ascii_only=ascii_only), "yellow")
        yield line


def _fit(lines: list[Text], width: int, height: int) -> list[Text]:
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    return lines[:height]
