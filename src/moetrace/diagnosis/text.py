"""A diagnosis in lines for people; every name in it is made unable to act on a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from moetrace.printable import printable

__all__ = ["in_words"]

MOST_NAMES = 2
"""Sites that a finding names before it says how many more there are."""

MOST_EXPERTS = 16
"""Experts whose counts are printed side by side; `Diagnosis.to_dict` has all."""

LONGEST = 600
"""Characters of one sentence of a finding."""

MARGIN = 9


def in_words(record: Mapping[str, Any], *, width: int | None = None) -> list[str]:
    """The lines of a diagnosis.

    Args:
        record: What `Diagnosis.to_dict` returns.
        width: Columns to fold the lines at; None leaves a finding on one line.
    """
    findings, sites = record["findings"], record["sites"]
    lines = [f"{printable(record['subject'])}: {_summary(findings, sites)}"]
    if findings:
        lines.append("")
    for finding in findings:
        where = f"{_names(finding['sites'])}: " if finding["sites"] else ""
        text = f"{finding['kind']}: {where}{_said(finding['found'])} -> {_said(finding['advice'])}"
        lines += _folded(f"{finding['severity']:<{MARGIN}}{text}", MARGIN, width)
    for kind, group in _by_kind(sites).items():
        lines.append("")
        lines += _folded(f"{len(group)} x {kind}", 2, width)
        for line in [*_by_state(group), *_in_trial(group)]:
            lines += _folded(f"  {line}", 4, width)
    return lines


def _summary(findings: Sequence[Mapping[str, Any]], sites: Sequence[Mapping[str, Any]]) -> str:
    counted = sum(site["state"] == "counted" for site in sites)
    severities = [finding["severity"] for finding in findings]
    told = [
        f"{number} {severity}{'s' if number > 1 else ''}"
        for severity in dict.fromkeys(severities)
        if (number := severities.count(severity))
    ]
    healthy = all(severity == "note" for severity in severities)
    verdict = ", ".join((["healthy"] if healthy else []) + told)
    where = f"{counted} of {len(sites)} sites counted" if sites else "nothing is counted here"
    return f"{where}; {verdict}"


def _by_kind(sites: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for site in sites:
        how = f" ({_said(site['scored_by'])})" if site["scored_by"] else ""
        kind = (
            f"{printable(site['router'])}, {_experts(site)}, "
            f"top-{site['top_k'] or '?'}, {printable(site['scoring'])}{how}, "
            f"read by {printable(site['rule'])}"
        )
        groups.setdefault(kind, []).append(site)
    return groups


def _experts(site: Mapping[str, Any]) -> str:
    identity = site.get("identity_experts")
    return f"{site['num_experts']} experts{f' + {identity} identity' if identity else ''}"


def _by_state(group: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{state}: {', '.join(printable(s['name']) for s in group if s['state'] == state)}"
        for state in dict.fromkeys(site["state"] for site in group)
    ]


def _in_trial(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per site that ran in the trial; sites whose experts agree share one."""
    ran = [site for site in group if site["decided"] is not None]
    agree = [site for site in ran if _agrees(site)]
    lines = [
        f"{printable(site['name'])}: decided {_counts(site['decided'])}, received "
        f"{_received(site)} ({_said(site['seen_by'])})"
        for site in ran
        if site not in agree
    ]
    if agree:
        lines.append(f"trial: the experts of {len(agree)} sites received what was decided")
    return lines


def _received(site: Mapping[str, Any]) -> str:
    return "not visible" if site["received"] is None else _counts(site["received"])


def _agrees(site: Mapping[str, Any]) -> bool:
    """Whether every expert that has weights received what was decided for it."""
    decided, received = site["decided"], site["received"]
    return bool(decided) and bool(received) and decided[: len(received)] == received


def _counts(counts: Sequence[int]) -> str:
    shown = " ".join(map(str, counts[:MOST_EXPERTS]))
    return f"[{shown}{' ...' if len(counts) > MOST_EXPERTS else ''}]"


def _names(sites: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in sites[:MOST_NAMES])
    more = len(sites) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _said(text: str) -> str:
    return printable(text, longest=LONGEST)


def _folded(line: str, indent: int, width: int | None) -> list[str]:
    if width is None:
        return [line]
    return textwrap.wrap(
        line,
        max(width, 40),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
