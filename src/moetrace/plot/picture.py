"""One picture: a run, a kind, a file."""

import difflib
import os
from pathlib import Path

from moetrace.plot.choice import Choice
from moetrace.plot.drawing import SUFFIXES, drawing, save
from moetrace.plot.kinds import KINDS
from moetrace.run import Run

__all__ = ["write_plot"]


def write_plot(
    run: Run,
    out: str | os.PathLike[str],
    *,
    kind: str,
    phase: str = "train",
    step: int | None = None,
    layers: str = "*",
) -> Path:
    """Draw a picture of a run; a file that is there is replaced in one move.

    Args:
        run: The run, live or finished.
        out: The file, ``.png`` or ``.svg``.
        kind: A key of `KINDS`.
        phase: Windows of this phase.
        step: A step of the window, for kinds that show one; None for the last.
        layers: Glob over the names of the layers.

    Returns:
        The file.

    Raises:
        ValueError: There is no such kind, phase, step or layer, the run has not recorded what the
            kind shows (the message says how to), or the file has another ending.
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 2)
        advice = f"did you mean {' or '.join(near)}" if near else f"there are {', '.join(KINDS)}"
        raise ValueError(f"found no kind {kind!r}; {advice}")
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"found {path.name!r}; a plot ends in {' or '.join(SUFFIXES)}")
    chosen = KINDS[kind]
    with drawing(chosen.width, chosen.height) as figure:
        chosen.draw(figure, Choice(run, phase, step, layers))
        save(figure, path)
    return path
