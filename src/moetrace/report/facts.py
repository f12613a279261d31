"""What the run folder says about itself: the model, its routers, the processes, what went wrong."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from moetrace.diagnosis.health import check_health
from moetrace.printable import span_text
from moetrace.report.advice import ADVICE
from moetrace.report.finding import Finding
from moetrace.report.names import shown
from moetrace.report.probes import untrained
from moetrace.report.windows import Windows
from moetrace.run import Run
from moetrace.snapshot import Snapshot

__all__ = ["SITE_COLUMNS", "counters", "facts", "probe_findings", "sites", "tiles"]

SITE_COLUMNS = (
    "site",
    "router",
    "reader",
    "scoring",
    "experts",
    "chosen per token",
    "also known as",
)
"""Head of the table of routers."""

SITE_KEYS = ("name", "router", "reader", "scoring", "num_experts", "top_k", "aliases")

Facts: TypeAlias = list[tuple[str, str]]


def facts(run: Run, histories: Mapping[str, Sequence[Snapshot]]) -> Facts:
    """Label and text of everything the run folder says; the texts went through `shown`."""
    manifest = run.manifest
    rows = [
        ("run", shown(run.run_id)),
        ("folder", shown(run.path.name)),
        ("model", shown(manifest.get("model", "not recorded"))),
        ("phases", "; ".join(_extent(phase, history) for phase, history in histories.items())),
        ("ranks", f"{_numbers(run.ranks)} (world size {shown(manifest.get('world_size', '?'))})"),
        ("attempts", _numbers(run.attempts)),
        ("state", "finished" if run.finished else "open: still running, or ended without closing"),
        ("window", f"every {shown(manifest.get('every', '?'))} steps"),
        ("operator", shown(manifest.get("operator", ""))),
        ("versions", _pairs(manifest.get("versions"))),
    ]
    rows += _cost(run, histories)
    for phase, history in histories.items():
        health = history[-1].health if history else {}
        said = "; ".join(f"{item.found}: {item.advice}" for item in check_health(health))
        rows.append((f"tracer in {shown(phase)}", shown(said) if said else "nothing to report"))
        rows.append((f"its state in {shown(phase)}", _pairs(health)))
    rows += [("fault", shown(fault)) for fault in run.faults] or [("faults", "none")]
    return [(label, text) for label, text in rows if text]


def sites(manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of `SITE_COLUMNS` per router of the manifest; what is no record of one is left out."""
    listed = manifest.get("sites")
    found = listed if isinstance(listed, list | tuple) else ()
    return [
        tuple(_cell(site.get(key)) for key in SITE_KEYS)
        for site in found
        if isinstance(site, Mapping)
    ]


def tiles(windows: Windows) -> list[tuple[str, str, str]]:
    """The few figures to see first: label, value, remark."""
    if not windows.layers:
        return [("last window", span_text(*windows.spans[-1]), "")]
    excess = windows.metrics["max_vio_excess"][-1]
    rows = []
    if not np.isnan(excess).all():
        worst = int(np.nanargmax(excess))
        floor = windows.metrics["max_vio_floor"][-1, worst]
        rows.append(
            (
                "worst MaxVio",
                f"{windows.metrics['max_vio'][-1, worst]:.3f}",
                f"noise floor {floor:.3f}, in {shown(windows.layers[worst].name)}",
            )
        )
    dead = windows.metrics["dead_experts"][-1]
    experts = np.array([layer.num_experts for layer in windows.layers])
    if not np.isnan(dead).all():
        # a layer that routes nothing has no such metric, and no expert with a token
        idle = np.nansum(dead) + experts[windows.tokens[-1] <= 0].sum()
        rows.append(("experts without a token", f"{int(idle)}", f"of {experts.sum():,}"))
    entropy = windows.metrics["routing_entropy"][-1]
    if not np.isnan(entropy).all():
        rows.append(("routing entropy", f"{np.nanmedian(entropy):.3f}", "nats, median layer"))
    tokens = int(windows.tokens.clip(min=0).sum(axis=0).max(initial=0))
    rows.append(("tokens", f"{tokens:,}", f"{shown(windows.phase)}, in {len(windows)} windows"))
    rows.append(("last window", span_text(*windows.spans[-1]), ""))
    return rows


def counters(snapshots: Iterable[Snapshot]) -> list[Finding]:
    """What the routers did that no router should, over all windows of a phase.

    What is not in the last window any more is less urgent than what is.
    """
    totals = {"nonfinite": 0, "out_of_range": 0, "dropped": 0, "identity": 0}
    first: dict[str, str] = {}
    now: set[str] = set()
    for snapshot in snapshots:
        now.clear()
        for stats in snapshot:
            for name in totals:
                value = int(getattr(stats, name))
                totals[name] += value
                if value:
                    now.add(name)
                if value and name not in first:
                    span = span_text(snapshot.first_step, snapshot.last_step)
                    first[name] = f"first in {shown(stats.layer)}, {span}"
    texts = {
        "nonfinite": ("bad", "router decisions came from NaN or infinite logits"),
        "out_of_range": ("bad", "assignments went to experts that do not exist"),
        "dropped": ("note", "assignments were dropped by a capacity limit"),
        "identity": ("note", "assignments went to identity experts, which compute nothing"),
    }
    return [
        Finding(
            tone if tone == "note" or name in now else "warn",
            f"{totals[name]:,} {text}: {first[name]}{'' if name in now else ', none in the last'}.",
            ADVICE[name],
        )
        for name, (tone, text) in texts.items()
        if totals[name]
    ]


def probe_findings(history: Sequence[Snapshot]) -> list[Finding]:
    """What the router weights and the gradients of a phase say, where they were recorded."""
    found = []
    still = untrained(history[-1])
    if still:
        where = span_text(history[-1].first_step, history[-1].last_step)
        noun = "router tensor" if len(still) == 1 else "router tensors"
        text = f"{len(still)} trainable {noun} did not change in {where}: {shown(still[0].layer)}"
        more = " first." if len(still) > 1 else "."
        found.append(Finding("warn", text + more, ADVICE["untrained"]))
    broken = [window for window in history if any(r.nonfinite for r in window.gradients)]
    if broken:
        last = [record for record in history[-1].gradients if record.nonfinite]
        # a loss scale that looks for its height loses a step now and then, and nothing more
        tone = "warn" if last else "note"
        if any(record.nonfinite == record.steps for record in last):
            tone = "bad"
        where = span_text(broken[0].first_step, broken[0].last_step)
        group = next(record.group for record in broken[0].gradients if record.nonfinite)
        count = "1 window" if len(broken) == 1 else f"{len(broken)} windows"
        text = f"Gradients were NaN or infinite in {count}, first in {where} ({shown(group)})."
        found.append(Finding(tone, text, "" if tone == "note" else ADVICE["gradients"]))
    return found


def _cost(run: Run, histories: Mapping[str, Sequence[Snapshot]]) -> Facts:
    """What keeping the run takes: bytes on disk, and of how many windows."""
    try:
        size = sum(item.stat().st_size for item in run.path.rglob("*") if item.is_file())
    except OSError:
        return []
    windows = sum(map(len, histories.values()))
    if not size or not windows:
        return []
    ranks = f" of {len(run.ranks)} ranks" if len(run.ranks) > 1 else ""
    text = f"{size / 1e6:,.2f} MB on disk, {size / windows / 1e3:,.1f} kB per window{ranks}"
    return [("cost", text), *_pace(histories)]


def _pace(histories: Mapping[str, Sequence[Snapshot]]) -> Facts:
    """How fast the training went by the clock, tracer included."""
    history = histories.get("train", ())
    times = [(window.last_step, window.wall_time) for window in history if window.wall_time > 0]
    if len(times) < 2 or times[-1][0] <= times[0][0] or times[-1][1] <= times[0][1]:
        return []
    seconds = (times[-1][1] - times[0][1]) / (times[-1][0] - times[0][0])
    return [("pace", f"{seconds:.4g} s per step by the clock, between first and last window")]


def _extent(phase: str, history: Sequence[Snapshot]) -> str:
    if not history:
        return f"{shown(phase)}: no window"
    first = min(snapshot.first_step for snapshot in history)
    last = max(snapshot.last_step for snapshot in history)
    noun = "window" if len(history) == 1 else "windows"
    return f"{shown(phase)}: {len(history)} {noun}, {span_text(first, last)}"


def _numbers(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _pairs(mapping: object) -> str:
    if not isinstance(mapping, Mapping):
        return ""
    return ", ".join(f"{shown(name)} {shown(value)}" for name, value in mapping.items())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return shown(value)
