"""What was recorded: model, routers, processes, windows, health, faults."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from moetrace.printable import printable
from moetrace.run import Run
from moetrace.show.columns import Cell, print_line, print_table, width_of

__all__ = ["facts", "show_facts"]


LONGEST = 8192
"""Characters of a value that are printed: more than the longest path of Linux."""


def facts(run: Run) -> dict[str, Any]:
    """What the run says about itself, as plain numbers, strings, lists and dicts.

    All of `Run.summary`, and: ``path``; from the manifest ``every``, ``world_size``, ``sites`` and
    ``versions``; ``health``, the tracer's own state when the newest window of each phase closed;
    ``events``, how many were written.
    """
    manifest = run.manifest
    return {
        "path": str(run.path),
        **run.summary(),
        "every": manifest.get("every"),
        "world_size": manifest.get("world_size"),
        "sites": list(manifest.get("sites") or ()),
        "versions": manifest.get("versions"),
        "health": {phase: _health(run, phase) for phase in run.phases},
        "events": len(run.events()),
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
        "versions": _pairs(found["versions"]),
        "events": found["events"],
    }
    for label, value in rows.items():
        print_line(f"{label:<10}{printable(str(value), longest=LONGEST)}", out)
    print_line("", out)
    print_table(
        ("phase", "windows", "steps", "tokens"), [_phase(p, found) for p in run.phases], out
    )
    for kind, names in _by_kind(found["sites"]).items():
        print_line(f"\n{len(names)} x {kind}", out)
        for line in textwrap.wrap(", ".join(names), width_of(out) - 2, break_on_hyphens=False):
            print_line(f"  {line}", out)
    print_line("", out)
    for phase, health in found["health"].items():
        print_line(f"health ({printable(phase)}): {printable(_pairs(health)) or 'not told'}", out)
    for fault in found["faults"] or ["none"]:
        print_line(f"fault: {printable(fault)}", out)


def _health(run: Run, phase: str) -> dict[str, Any]:
    windows = run.snapshots(phase=phase)
    return dict(windows[-1].health) if windows else {}


def _phase(phase: str, found: Mapping[str, Any]) -> list[Cell]:
    first, last = found["steps"][phase]
    return [
        Cell(printable(phase)),
        Cell(f"{found['windows'][phase]:,}"),
        Cell(f"{first}-{last}" if first != last else f"{first}"),
        Cell(f"{found['tokens'][phase]:,}"),
    ]


def _by_kind(sites: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Names of the routers, with their aliases, by what they are: most models have one kind."""
    found: dict[str, list[str]] = {}
    for site in sites:
        said = {key: printable(str(value)) for key, value in site.items()}
        kind = (
            f"{said.get('router')}, {said.get('num_experts')} experts, top-{said.get('top_k')}, "
            f"{said.get('scoring')}, read by {said.get('reader')}"
        )
        also = [printable(str(alias)) for alias in site.get("aliases") or ()]
        name = " = ".join([said["name"], *also])
        found.setdefault(kind, []).append(name)
    return found


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
