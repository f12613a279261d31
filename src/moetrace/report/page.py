"""Puts the page together: one HTML file that holds everything it needs and may request nothing."""

import base64
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

from moetrace.report.advice import ADVICE
from moetrace.report.alarms import SHOWN, Alarm, alarms
from moetrace.report.facts import SITE_COLUMNS, counters, facts, probe_findings, sites, tiles
from moetrace.report.finding import Finding, most_urgent_first
from moetrace.report.names import shown
from moetrace.report.payload import MOST_LAYERS, build, layers_drawn
from moetrace.report.tables import index_findings, usage_maps
from moetrace.report.verdict import verdict
from moetrace.report.windows import Windows, layers_of, tabulate
from moetrace.run import Run
from moetrace.snapshot import Snapshot

Histories: TypeAlias = Mapping[str, Sequence[Snapshot]]

__all__ = ["CAP", "render", "write_report"]

CAP = 5_000_000
"""Most characters of a page (they are ASCII but for the names): beyond it, windows are added up."""

SCRIPTS = (
    *("decode.js", "heatmap.js", "curves.js", "table.js"),
    *("layer.js", "ranks.js", "alarms.js", "tables.js", "page.js"),
)
"""The page's own script, in the order in which its parts need each other."""

FIRST_ALARMS = 6
"""Alerts that are seen at once; the others are one click away."""


def write_report(run: Run, out: str | os.PathLike[str], *, cap: int = CAP) -> Path:
    """Write the run as one self-contained HTML page.

    A page that is there already is replaced in one move: a reader sees the old or the new one.

    Args:
        run: The run, live or finished.
        out: The file to write.
        cap: Most characters of the page, as in `render`.

    Returns:
        The path written.

    Raises:
        OSError: The file cannot be written.
        RunNotReadable: It holds a number from 2**52 on, which no browser reads exactly.
    """
    path = Path(out)
    page = render(run, cap=cap)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.write_text(page, encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def render(run: Run, *, cap: int = CAP, live: str = "") -> str:
    """The run as the text of one self-contained HTML page.

    Args:
        run: The run, live or finished.
        cap: Most characters of the page. Where every window does not fit exactly, neighbouring ones
            are added up until they do, and the page says so; the last window is always exact. Of
            more than `MOST_LAYERS` layers those furthest from even are drawn; the verdict is over
            all.
        live: For `moetrace.serve`: what the folder is like. The page then asks ``state``, beside
            itself, and loads itself anew when the answer is another one.

    Returns:
        HTML that requests nothing: its Content-Security-Policy names the hashes of its own scripts
        and style, and allows nothing else. A live page may ask its own server.

    Raises:
        RunNotReadable: It holds a number from 2**52 on, which no browser reads exactly.
    """
    histories = {phase: run.snapshots(phase=phase) for phase in run.phases}
    histories = {phase: history for phase, history in histories.items() if history}
    layers = layers_of((item for history in histories.values() for item in history), run.layers)
    tables = {
        phase: tabulate(phase, [[item] for item in history], layers)
        for phase, history in histories.items()
    }
    shell = {**_assets(live=bool(live)), **_told(run, histories, tables), **_lively(live)}
    room = cap - sum(map(len, shell.values())) - len(_resource("page.html"))
    drawn = layers_drawn(next(iter(tables.values()))) if len(layers) > MOST_LAYERS else layers
    if len(drawn) < len(layers):
        tables = {
            phase: tabulate(phase, [[item] for item in history], drawn)
            for phase, history in histories.items()
        }
    data = build(histories, drawn, tables, cap=room, maps=usage_maps(run, histories))
    parts = {**shell, "data": data}
    # one pass, so that text from the run cannot name another part
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _resource("page.html"))


def _told(run: Run, histories: Histories, tables: Mapping[str, Windows]) -> dict[str, str]:
    """The parts of the page that are text of this run, as markup."""
    main, *rest = _said_once(_findings(run, histories, tables))
    first = next(iter(tables.values()), None)
    rows = sites(run.manifest)
    found = alarms(run)
    return {
        "title": escape(f"moetrace: {shown(run.run_id)}"),
        "run": escape(shown(run.run_id)),
        "about": escape(shown(run.manifest.get("model", ""))),
        "tone": main.tone,
        "headline": escape(main.text),
        "advice": _advice(main, '<p class="advice"><b>To try:</b> {}</p>'),
        "findings": _joined(
            f'<li class="{item.tone}">{escape(item.text)}'
            f"{_advice(item, '<small>To try: {}</small>')}</li>"
            for item in rest
        ),
        "tiles": _joined(
            f"<div><dt>{escape(label)}</dt>"
            f"<dd>{escape(value)} <small>{escape(remark)}</small></dd></div>"
            for label, value, remark in (tiles(first) if first else ())
        ),
        "alarms": _alarms(found, list(histories)),
        "left_out": _left_out(len(first.layers) if first else 0),
        "facts": _listed(facts(run, histories)),
        "site_columns": _cells(SITE_COLUMNS, "th"),
        "routers": "1 router traced" if len(rows) == 1 else f"{len(rows)} routers traced",
        "sites": _joined(f"<tr>{_cells(row, 'td')}</tr>" for row in rows),
        "version": escape(version("moetrace")),
    }


def _findings(run: Run, histories: Histories, tables: Mapping[str, Windows]) -> list[Finding]:
    """The sentences on top: what is urgent first, otherwise in the order of the page."""
    if not tables:
        found = [Finding("note", "This run holds no window yet: there is nothing to judge.")]
    else:
        phase, windows = next(iter(tables.items()))
        history = histories[phase]
        found = [*index_findings(history), *counters(history), *probe_findings(history)]
        if windows.layers or not found:
            found = [*found, *verdict(windows)]
        if phase != "train":
            found.append(
                Finding("note", f"No train window: the verdict is about phase {shown(phase)}.")
            )
    if run.faults:
        count = "1 fault" if len(run.faults) == 1 else f"{len(run.faults)} faults"
        text = f"{count} in the run folder: {shown(run.faults[0])}."
        found.append(Finding("warn", text, ADVICE["fault"]))
    return most_urgent_first(found)


def _left_out(layers: int) -> str:
    if layers <= MOST_LAYERS:
        return ""
    return (
        f'<p class="binned">Of {layers:,} layers the {MOST_LAYERS:,} furthest over their noise '
        "floor in the last window are drawn; the verdict above is over all.</p>"
    )


def _said_once(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of which only the first of each kind says what to try."""
    told: set[str] = set()
    found = []
    for finding in findings:
        found.append(replace(finding, advice="") if finding.advice in told else finding)
        told.add(finding.advice)
    return found


def _advice(finding: Finding, markup: str) -> str:
    return markup.format(escape(finding.advice)) if finding.advice else ""


def _alarms(found: Sequence[Alarm], phases: Sequence[str]) -> str:
    """The alerts as a table, the first few at once, the others behind a click."""
    if not found:
        return "<p>None was recorded.</p>"
    first, more = found[:FIRST_ALARMS], found[FIRST_ALARMS:SHOWN]
    parts = [_alarm_table(first, phases)]
    if more:
        noun = "more alert" if len(more) == 1 else "more alerts"
        left = len(found) - SHOWN
        rest = f", and {left} that this page leaves out" if left > 0 else ""
        parts.append(f"<details><summary>{len(more)} {noun}{rest}</summary>")
        parts.append(f"{_alarm_table(more, phases)}</details>")
    return _joined(parts)


def _alarm_table(found: Sequence[Alarm], phases: Sequence[str]) -> str:
    heads = ("alert", "since", "until", "over the steps of its phase", "what was said")
    rows = _joined(_alarm(alarm, phases) for alarm in found)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Alerts"><table><thead><tr>'
        f"{_cells(heads, 'th')}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"
    )


def _alarm(alarm: Alarm, phases: Sequence[str]) -> str:
    until = "holds" if alarm.last_step is None else f"step {alarm.last_step}"
    rank = "rank" if len(alarm.ranks) == 1 else "ranks"
    of = f" ({rank} {', '.join(map(str, alarm.ranks))})" if alarm.ranks != (0,) else ""
    at = phases.index(alarm.phase) if alarm.phase in phases else -1
    cells = _cells((alarm.title, f"step {alarm.first_step}", until), "td")
    last = "" if alarm.last_step is None else alarm.last_step
    track = f'data-phase="{at}" data-first="{alarm.first_step}" data-last="{last}"'
    state = "open" if alarm.last_step is None else "over"
    said = _cells((alarm.text + of,), "td")
    return f'<tr class="{state}">{cells}<td class="track" {track}></td>{said}</tr>'


def _listed(rows: Iterable[tuple[str, str]]) -> str:
    return _joined(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in rows)


def _cells(texts: Iterable[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _lively(state: str) -> dict[str, str]:
    """What a served page has and a file has not."""
    if not state:
        promise = "One file, nothing loaded: the Content-Security-Policy of this page allows no"
        return {"live": "", "promise": f"{promise} request."}
    live = (
        f'<span id="live" data-state="{escape(state)}"><label><input type="checkbox" checked> '
        "follow the run</label> <output></output></span>"
    )
    return {"live": live, "promise": "Served on this machine alone, and renewed from there."}


@cache
def _assets(*, live: bool) -> dict[str, str]:
    """Scripts and style, and the policy that lets exactly these act."""
    own = "\n".join(map(_resource, (*(("live.js",) if live else ()), *SCRIPTS)))
    script = f'(() => {{\n"use strict";\n{own}}})();\n'
    uplot = _resource("vendor/uPlot.iife.min.js")
    style = _resource("vendor/uPlot.min.css") + _resource("page.css")
    policy = (
        f"default-src 'none'; script-src {_hash(uplot)} {_hash(script)}; style-src {_hash(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    if live:
        policy += "; connect-src 'self'"
    return {"policy": policy, "style": style, "uplot": uplot, "script": script}


@cache
def _resource(name: str) -> str:
    return files("moetrace.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
