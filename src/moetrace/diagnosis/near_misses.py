"""Modules that look like routers and are not traced, as attach or a run's header names them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from moetrace.diagnosis.finding import Finding

__all__ = ["check_near_misses", "grouped"]

MOST_GROUPS = 16
"""Groups of near misses that are kept: those of all layers of a kind are one."""

MOST_PATHS = 4
"""Paths that a group names."""

LONGEST_REASON = 200
"""Characters of a reason that are kept."""


class Candidate(Protocol):
    """What is read of a site that was left."""

    @property
    def path(self) -> str:
        """Dotted path of the module."""
        ...

    @property
    def router(self) -> str:
        """Its class name."""
        ...

    @property
    def reason(self) -> str:
        """Why it was left."""
        ...


def grouped(misses: Iterable[Candidate]) -> list[dict[str, Any]]:
    """Near misses of one class and reason together, small enough for the header of a run.

    Each group has ``router``, ``reason``, the first four ``paths`` and ``count``.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for miss in misses:
        groups.setdefault((miss.router, miss.reason[:LONGEST_REASON]), []).append(miss.path)
    return [
        {"router": router, "reason": reason, "paths": paths[:MOST_PATHS], "count": len(paths)}
        for (router, reason), paths in list(groups.items())[:MOST_GROUPS]
    ]


def check_near_misses(groups: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """A note for each group of `grouped`."""
    advice = "if it is a router, a reader of your own makes it count (readers=[...])"
    return [
        Finding(
            "near-miss",
            "note",
            f"{group['count']} x {group['router']} not traced: {group['reason']}",
            advice,
            tuple(group["paths"]),
        )
        for group in groups
    ]
