"""A line per row of the fault matrix: how often it was tried and failed, how long it took.

A test names its rows at the head of its docstring: ``C5, D2: killed at ...`` or ``A1 to A4: ...``.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pytest

ROWS = {"A": 30, "B": 15, "C": 20, "D": 18, "E": 11, "F": 14, "G": 11, "H": 8, "I": 20, "J": 17}
"""Rows per group of the matrix, 164 in all."""

ELSEWHERE = {
    "A28": "needs a free-threaded Python",
    "A30": "needs a GPU: benchmarks/gpu.py",
    "B13": "no test holds the interpreter's lock from C",
    "B14": "no test stops the process for 30 s; clocks are monotonic (C5)",
    "C6": "only the writer's thread waits for a disk, as for a hung one (B2, D5)",
    "C15": "no run of 10 GiB is made here",
    "C17": "a disk that blocks for ever needs privileges; docs/reliability.md says what happens",
    "C18": "holds by construction: names of files never come from names of layers (I6)",
    "C20": "not handled: where no thread can be started, attach raises",
    "D16": "no notebook is driven here; a second attach is refused by name",
    "H5": "bounds of what waits are tested (B4); no formula of all memory is asserted",
    "H6": "measured by benchmarks/counted_cost.py and overhead.py; no test asserts a time",
    "H7": "no benchmark ties the process to one core; overhead.py times what the writer adds",
    "H8": "import rules and imports of the commands are tested in tests/test_public_api.py",
    "I17": "the report's own tests: tests/report",
    "I20": "files follow the umask; nothing sets a mode",
}
"""Rows that no test names, and why."""

_NAMED = re.compile(r"((?:[A-J]\d+(?:-L\d+)?(?:, | to | and )?)+):")
_ONE = re.compile(r"([A-J])(\d+)(?:-L\d+)?( to )?")


def rows() -> Iterator[str]:
    """All rows of the matrix in their order."""
    for group, count in ROWS.items():
        yield from (f"{group}{number}" for number in range(1, count + 1))


def rows_named(docstring: str | None) -> list[str]:
    """The rows at the head of a docstring.

    >>> rows_named("C5, D2: killed"), rows_named("A1 to A3: raises"), rows_named("Note: B2")
    (['C5', 'D2'], ['A1', 'A2', 'A3'], [])
    """
    head = _NAMED.match((docstring or "").lstrip())
    found: list[str] = []
    upto = 0
    for group, digits, more in _ONE.findall(head[1] if head else ""):
        number = int(digits)
        found += [f"{group}{between}" for between in range(upto or number, number + 1)]
        upto = number + 1 if more else 0
    return found


@dataclass
class Line:
    """What is known of one row."""

    id: str
    tries: int = 0
    failures: int = 0
    skipped: int = 0
    seconds: float = 0.0
    note: str = ""


class Ledger:
    """Collects results by row; as a plugin of pytest it runs only tests that name rows."""

    def __init__(self) -> None:
        self.lines = {row: Line(row) for row in rows()}
        self._rows_of: dict[str, list[str]] = {}

    def add(
        self, ids: Iterable[str], *, tries: int, failures: int, seconds: float, note: str = ""
    ) -> None:
        """Add so many tries to rows."""
        for row in ids:
            line = self.lines[row]
            line.tries, line.failures = line.tries + tries, line.failures + failures
            line.seconds += seconds
            line.note = "; ".join(filter(None, (line.note, note)))

    def to_json(self) -> list[dict[str, Any]]:
        """All rows; one that was not tried says why."""
        for line in self.lines.values():
            line.seconds = round(line.seconds, 2)
            if not line.tries and not line.note:
                line.note = ELSEWHERE.get(line.id, "no test names this row")
        return [asdict(line) for line in self.lines.values()]

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out tests that name no row."""
        for item in items:
            named = rows_named(getattr(getattr(item, "function", None), "__doc__", None))
            if known := [row for row in named if row in self.lines]:
                self._rows_of[item.nodeid] = known
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in self._rows_of])
        items[:] = [item for item in items if item.nodeid in self._rows_of]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test went."""
        for row in self._rows_of.get(report.nodeid, ()):
            line = self.lines[row]
            line.seconds += report.duration
            if report.when == "call" or report.outcome != "passed":
                if report.outcome == "skipped":
                    line.skipped += 1
                else:
                    line.tries += 1
                    line.failures += report.outcome == "failed"
