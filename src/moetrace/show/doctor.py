"""What is wrong with a run: the part of a diagnosis that its recorded windows can tell."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from moetrace.diagnosis.finding import Diagnosis, Finding, SiteState, worst_first
from moetrace.diagnosis.health import check_health
from moetrace.diagnosis.near_misses import check_near_misses
from moetrace.diagnosis.silence import check_ended, check_silence
from moetrace.diagnosis.tables import check_tables, table_states
from moetrace.diagnosis.text import in_words
from moetrace.diagnosis.windows import check_windows
from moetrace.run import Run
from moetrace.show.columns import print_line, width_of
from moetrace.show.manifest import listed
from moetrace.show.totals import Totals

__all__ = ["diagnose_run", "show_diagnosis"]

MOST_FAULTS = 8
"""Faults of the folder that are told one by one."""


def diagnose_run(run: Run) -> Diagnosis:
    """Invariants of every window, silent sites, health and faults of a run.

    What needs the model (hooks, hazards, a trial forward) is `moetrace.tracer.Tracer.doctor`.
    Cost: every window is read once.
    """
    totals = Totals()
    sites = [site for site in listed(run.manifest, "sites") if site.get("recorded") is not False]
    stated = {str(site.get("name")): _number(site.get("top_k")) for site in sites}
    of_windows = check_windows(totals.windows(run), stated)
    names = list(dict.fromkeys([*stated, *run.layers]))
    findings = [
        *_faults(run),
        *of_windows,
        *check_silence(
            [name for name in names if name not in _withheld(totals)],
            totals.counted(),
            steps=totals.last_step,
        ),
        *check_tables(totals.tables.values()),
        *check_ended(totals.last_counted, totals.newest),
        *_health(totals),
        *_state_of(run, totals),
        *check_near_misses(_groups(run.manifest)),
    ]
    by_name = {str(site.get("name")): site for site in sites}
    told = [str(table.get("layer")) for table in listed(run.manifest, "tables")]
    tables = table_states(
        (name for name in dict.fromkeys([*told, *totals.tables]) if name not in names),
        totals.tables,
    )
    return Diagnosis(
        f"run {run.run_id}",
        (*(_state(name, by_name.get(name, {}), totals) for name in names), *tables),
        worst_first(findings),
    )


def show_diagnosis(diagnosis: Diagnosis, *, stream: TextIO | None = None) -> None:
    """Print a diagnosis, folded to the width of a terminal; in a pipe a finding is one line."""
    out: TextIO = sys.stdout if stream is None else stream
    width = width_of(out) if out.isatty() else None
    for line in in_words(diagnosis.to_dict(), width=width):
        print_line(line, out)


def _faults(run: Run) -> list[Finding]:
    advice = "what can be read is shown; compare with the machine's log of that time"
    findings = [Finding("fault", "error", fault, advice) for fault in run.faults[:MOST_FAULTS]]
    more = len(run.faults) - MOST_FAULTS
    if more > 0:
        text = f"{more} more faults in the folder"
        findings.append(Finding("fault", "error", text, "moetrace inspect lists them"))
    return findings


def _withheld(totals: Totals) -> set[str]:
    """Names of the sites whose numbers are withheld."""
    named = [health.get("withheld") for health in totals.health.values()]
    return {name for names in named if isinstance(names, str) for name in names.split(", ")}


def _health(totals: Totals) -> list[Finding]:
    """The tracer's own state at the end of each phase; one finding a kind."""
    findings: dict[str, Finding] = {}
    for health in totals.health.values():
        for finding in check_health(health):
            findings.setdefault(finding.kind, finding)
    return list(findings.values())


def _state_of(run: Run, totals: Totals) -> list[Finding]:
    findings = []
    if not run.finished:
        text = "the run is open: it goes on, or it ended without close()"
        advice = "nothing, while it runs; what was acknowledged is here in any case"
        findings.append(Finding("open", "note", text, advice))
    if "aborted" in totals.calls:
        text = "steps began and did not end; their forwards are in the phase 'aborted'"
        advice = "nothing, if they were retried after an error or skipped on purpose"
        findings.append(Finding("aborted", "note", text, advice))
    return findings


def _groups(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Near misses of a header that may be anybody's."""
    return [
        {
            "router": str(group.get("router")),
            "reason": str(group.get("reason")),
            "count": _number(group.get("count")),
            "paths": [str(path) for path in paths],
        }
        for group in listed(manifest, "near_misses")
        if isinstance(paths := group.get("paths"), list)
    ]


def _state(name: str, site: Mapping[str, Any], totals: Totals) -> SiteState:
    calls = sum(calls.get(name, 0) for calls in totals.calls.values())
    return SiteState(
        name=name,
        router=str(site.get("router", "")),
        rule=str(site.get("reader", "")) + (f" ({site['rule']})" if site.get("rule") else ""),
        num_experts=_number(site.get("num_experts")),
        top_k=_number(site.get("top_k")),
        scoring=str(site.get("scoring", "")),
        scored_by=str(site.get("scored_by", "")),
        state="counted" if calls else "silent",
        calls=calls,
        tokens=totals.tokens.get(name, 0),
        identity_experts=_number(site.get("identity_experts")),
    )


def _number(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 62 else 0
