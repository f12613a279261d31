"""What was recorded: model, routers, processes, windows, health, faults."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from moetrace.printable import printable
from moetrace.run import Run
from moetrace.show.columns import Cell, print_line, print_table, width_of
from moetrace.show.manifest import listed
from moetrace.show.totals import Totals

__all__ = ["facts", "show_facts"]


LONGEST = 8192
"""Characters of a value that are printed: more than the longest path of Linux."""


def facts(run: Run) -> dict[str, Any]:
    """What the run says about itself, as plain numbers, strings, lists and dicts.

    All of `Run.summary`, and: ``path``; from the manifest ``every``, ``world_size``, ``versions``,
    ``near_misses`` and ``sites``, each with ``calls``, the forwards it counted by phase;
    ``health``, the tracer's own state when the newest window of each phase closed; ``events``, how
    many were written; ``tables`` of experts, with whether they were ``counted``; ``weights``, names
    of the tensors whose weights were recorded; ``gradients``, of how many repeated blocks by group.
    """
    manifest, totals = run.manifest, Totals()
    for _ in totals.windows(run):
        pass
    return {
        "path": str(run.path),
        **run.summary(),
        "every": manifest.get("every"),
        "world_size": manifest.get("world_size"),
        "sites": [_with_calls(site, totals) for site in listed(manifest, "sites")],
        "near_misses": list(listed(manifest, "near_misses")),
        "operator": manifest.get("operator", ""),
        "versions": manifest.get("versions"),
        "health": {phase: dict(totals.health.get(phase, {})) for phase in run.phases},
        "events": len(run.events()),
        "tables": _tables(run, totals),
        "weights": [".".join(key) for key in totals.weights],
        "gradients": {group: len(blocks - {""}) for group, blocks in totals.gradients.items()},
    }


def show_facts(run: Run, *, stream: TextIO | None = None) -> None:
    """Print `facts` for people; faults come last, so that they are seen.

    Args:
        run: The run.
        stream: Where to; standard output by default.
    """
    out: TextIO = sys.stdout if stream is None else stream
    found = facts(run)
    state = "finished" if found["finished"] else "open: still running, or ended without closing"
    rows = {
        "run": f"{found['run_id']} ({state})",
        "folder": found["path"],
        "model": found["model"],
        "window": f"every {found['every']} steps",
        "ranks": f"{_listed(run.ranks)} of world size {found['world_size']}",
        "attempts": _listed(run.attempts),
        "operator": found["operator"] or "not recorded",
        "versions": _pairs(found["versions"]),
        "events": found["events"],
    }
    for label, value in rows.items():
        print_line(f"{label:<10}{printable(str(value), longest=LONGEST)}", out)
    print_line("", out)
    print_table(
        ("phase", "windows", "steps", "tokens"), [_phase(p, found) for p in run.phases], out
    )
    _print_kinds(_by_kind(found["sites"]), out)
    _print_probes(found, out)
    if found["near_misses"]:
        print_line("\nlooked like a router and was left:", out)
        for group in found["near_misses"]:
            _print_folded(_near_miss(group), "  ", out)
    print_line("", out)
    for phase, health in found["health"].items():
        print_line(f"health ({printable(phase)}): {printable(_pairs(health)) or 'not told'}", out)
    for fault in found["faults"] or ["none"]:
        print_line(f"fault: {printable(fault)}", out)


def _with_calls(site: Mapping[str, Any], totals: Totals) -> dict[str, Any]:
    name = str(site.get("name"))
    calls = {phase: found.get(name, 0) for phase, found in totals.calls.items()}
    return {**site, "calls": calls}


def _tables(run: Run, totals: Totals) -> list[dict[str, Any]]:
    """Tables of experts: those that the header names, and those of which there is a window."""
    told = {str(table.get("layer")): dict(table) for table in listed(run.manifest, "tables")}
    for layer, table in totals.tables.items():
        told.setdefault(
            layer,
            {"layer": layer, "num_experts": table.num_experts, "columns": table.columns},
        )
    return [{**table, "counted": layer in totals.tables} for layer, table in told.items()]


def _kinds_of_tables(tables: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Names of the tables by what they are and by whether they counted."""
    found: dict[str, dict[str, list[str]]] = {}
    for table in tables:
        kind = f"table, {table.get('num_experts')} experts"
        if table.get("columns"):
            kind += f" by product keys, {table['columns']} columns"
        fired = "counted in train" if table["counted"] else "counted nothing"
        names = found.setdefault(printable(kind), {}).setdefault(fired, [])
        names.append(printable(str(table["layer"])))
    return found


def _print_kinds(kinds: Mapping[str, Mapping[str, Sequence[str]]], out: TextIO) -> None:
    for kind, groups in kinds.items():
        print_line("", out)
        _print_folded(f"{sum(map(len, groups.values()))} x {kind}", "", out)
        for fired, names in groups.items():
            _print_folded(f"{fired}: {', '.join(names)}", "  ", out)


def _print_probes(found: Mapping[str, Any], out: TextIO) -> None:
    _print_kinds(_kinds_of_tables(found["tables"]), out)
    if not found["sites"] and not found["tables"]:
        print_line("\nno router and no table of experts was traced", out)
    if found["weights"]:
        print_line("", out)
        _print_folded(f"weights followed of {len(found['weights'])} tensors", "", out)
        _print_folded(", ".join(map(printable, found["weights"])), "  ", out)
    if found["gradients"]:
        told = [
            printable(group) + (f" ({blocks} blocks)" if blocks > 1 else "")
            for group, blocks in found["gradients"].items()
        ]
        print_line("", out)
        _print_folded(f"gradients measured, by group: {', '.join(told)}", "", out)


def _phase(phase: str, found: Mapping[str, Any]) -> list[Cell]:
    first, last = found["steps"][phase]
    return [
        Cell(printable(phase)),
        Cell(f"{found['windows'][phase]:,}"),
        Cell(f"{first}-{last}" if first != last else f"{first}"),
        Cell(f"{found['tokens'][phase]:,}" if found["layers"] else "-"),
    ]


def _by_kind(sites: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Names of the routers, with their aliases, by what they are and by where they counted."""
    found: dict[str, dict[str, list[str]]] = {}
    for site in sites:
        said = {key: printable(str(value)) for key, value in site.items()}
        how = f" ({said['scored_by']})" if said.get("scored_by") else ""
        rule = f" ({said['rule']})" if said.get("rule") else ""
        experts = f"{said.get('num_experts')} experts"
        if said.get("identity_experts", "0") != "0":
            experts += f" + {said['identity_experts']} identity"
        kind = (
            f"{said.get('router')}, {experts}, top-{said.get('top_k')}, "
            f"{said.get('scoring')}{how}, read by {said.get('reader')}{rule}"
        )
        aliases = site.get("aliases")
        also = [printable(str(alias)) for alias in aliases] if isinstance(aliases, list) else []
        shared = site.get("shared") is True
        name = (" + " if shared else " = ").join([said.get("name", "?"), *also])
        name += " (one router for all)" if shared else ""
        found.setdefault(kind, {}).setdefault(_fired(site), []).append(name)
    return found


def _fired(site: Mapping[str, Any]) -> str:
    if site.get("recorded") is False:
        return "not recorded (layers=)"
    phases = [printable(str(phase)) for phase, calls in site["calls"].items() if calls]
    return f"counted in {', '.join(phases)}" if phases else "counted nothing"


def _near_miss(group: Mapping[str, Any]) -> str:
    paths = group.get("paths")
    shown = ", ".join(printable(str(path)) for path in (paths if isinstance(paths, list) else ()))
    what = f"{printable(str(group.get('count')))} x {printable(str(group.get('router')))}"
    return f"{what} ({shown}): {printable(str(group.get('reason')))}"


def _print_folded(text: str, indent: str, out: TextIO) -> None:
    for line in textwrap.wrap(
        text,
        width_of(out),
        initial_indent=indent,
        subsequent_indent=indent or "  ",
        break_on_hyphens=False,
    ):
        print_line(line, out)


def _listed(numbers: tuple[int, ...]) -> str:
    """Numbers in words, a long row of neighbours as a range.

    >>> _listed((0,)), _listed((0, 1, 2, 3)), _listed((0, 2))
    ('0', '0-3', '0, 2')
    """
    if len(numbers) > 2 and numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _pairs(record: Any) -> str:
    if not isinstance(record, Mapping):
        return str(record)
    return ", ".join(f"{name} {value}" for name, value in sorted(record.items()))
