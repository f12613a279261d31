"""Rows of text in columns: with rich on a terminal, plain everywhere else."""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

__all__ = ["Cell", "fitted", "print_line", "print_table", "width_of"]

GAP = "  "

NARROWEST = 12
"""Characters that the first column keeps on the narrowest terminal."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a table.

    Attributes:
        text: What it says, fit to be printed.
        style: How a terminal colours it, in rich's words; nothing may depend on it.
    """

    text: str
    style: str = ""


def print_table(head: Sequence[str], rows: Sequence[Sequence[Cell]], stream: TextIO) -> None:
    """Print a table whose first column is text and whose other columns are numbers.

    In a pipe or a file the first column is never cut, so that its names can be searched for.
    """
    names = [row[0].text for row in rows]
    if stream.isatty():
        others = [[head[at], *(row[at].text for row in rows)] for at in range(1, len(head))]
        taken = sum(max(map(len, column)) + len(GAP) for column in others)
        names = fitted(names, max(width_of(stream) - taken, NARROWEST))
    rows = [[Cell(name), *row[1:]] for name, row in zip(names, rows, strict=True)]
    if stream.isatty() and importlib.util.find_spec("rich") is not None:
        _print_rich(head, rows, stream)
    else:
        _print_plain(head, rows, stream)


def print_line(text: str, stream: TextIO) -> None:
    """Print a line; what the stream's encoding lacks is spelled out."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def fitted(names: Sequence[str], room: int) -> list[str]:
    """Names in at most ``room`` characters each; where they start alike, the start goes first.

    >>> fitted(["model.layers.0.mlp", "model.layers.11.mlp"], 40)
    ['model.layers.0.mlp', 'model.layers.11.mlp']
    >>> fitted(["model.layers.0.mlp", "model.layers.11.mlp"], 13)
    ['layers.0.mlp', 'layers.11.mlp']
    >>> fitted(["model.layers.0.mlp", "model.layers.11.mlp"], 5)
    ['0.mlp', '11...']
    """
    found = list(names)
    while max(map(len, found), default=0) > room:
        starts = {name.split(".", 1)[0] for name in found}
        if len(starts) > 1 or any("." not in name for name in found) or len(found) < 2:
            return [_cut(name, room) for name in found]
        found = [name.split(".", 1)[1] for name in found]
    return found


def width_of(stream: TextIO) -> int:
    """Columns of a terminal; 80 where that cannot be known."""
    try:
        columns = int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        try:
            columns = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError):
            columns = shutil.get_terminal_size().columns
    return columns if columns > 0 else 80


def _cut(name: str, room: int) -> str:
    return name if len(name) <= room else name[: room - 3] + "..."


def _print_plain(head: Sequence[str], rows: Sequence[Sequence[Cell]], stream: TextIO) -> None:
    table = [list(head), *([cell.text for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in table) for at in range(len(head))]
    for line in table:
        first, *others = line
        numbers = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print_line(GAP.join([first.ljust(widths[0]), *numbers]).rstrip(), stream)


def _print_rich(head: Sequence[str], rows: Sequence[Sequence[Cell]], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A Text, unlike a string, is taken literally: no markup in it, no emoji, no highlighting.
    table = Table(box=None, padding=(0, len(GAP), 0, 0), pad_edge=False, header_style="dim")
    for at, title in enumerate(head):
        table.add_column(Text(title), justify="right" if at else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
    Console(file=stream, width=width_of(stream), highlight=False).print(table)
