# pyright: strict
"""A table as CSV that a spreadsheet opens without running anything in it.

RFC 4180, UTF-8. Text stands in quotes and numbers do not; what is missing is an empty field.
"""

import math
import re
from pathlib import Path
from typing import Any, ClassVar

from moetrace.export.tables import Batch, Table
from moetrace.printable import printable

__all__ = ["CsvFile", "field"]

_ACTS = re.compile(r"[\s\"';,]*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
"""What a spreadsheet takes for a formula, also where it takes quotes and blanks away first."""

_LONGEST = 1 << 24


class CsvFile:
    """A table that is written row by row.

    Args:
        path: The file.
        table: What is written.
    """

    suffix: ClassVar[str] = ".csv"

    def __init__(self, path: Path, table: Table) -> None:
        self._columns = tuple(table.columns)
        self._file = path.open("w", encoding="utf-8", newline="")
        self._file.write(",".join(map(field, self._columns)) + "\n")

    def add(self, batch: Batch) -> None:
        """Write rows."""
        for row in zip(*(batch[name] for name in self._columns), strict=True):
            self._file.write(",".join(map(field, row)) + "\n")

    def close(self) -> None:
        """Put everything on its way to the disk."""
        self._file.close()


def field(value: Any) -> str:
    """One field. Text that a spreadsheet would run begins with an apostrophe instead.

    What in a text would act on a terminal is spelled out, as `moetrace.printable` does.

    Source: OWASP, CSV injection.

    >>> print(field("=1+1"), field(-1.5), field(None), field(True), sep="|")
    "'=1+1"|-1.5||true
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = printable(value, longest=_LONGEST)
        text = "'" + text if _ACTS.match(text) else text
        return '"' + text.replace('"', '""') + '"'
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return str(int(value))
