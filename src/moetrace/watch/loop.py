"""Opens the run again and again and draws what is new; in place where there is a terminal."""

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live

from moetrace.errors import RunNotReadable
from moetrace.show.columns import print_line, width_of
from moetrace.watch.follower import Follower, View
from moetrace.watch.screen import screen

__all__ = ["INTERVAL", "show_once", "watch"]

INTERVAL = 2.0
"""Seconds between two looks into the folder."""

BUSY = 0.1
"""Share of a core that a long run may take: after a slow refresh the pause is longer."""

TALL = 40
"""Lines of a frame where the terminal's height is not known."""


def show_once(view: View, *, stream: TextIO | None = None, now: float | None = None) -> None:
    """Print one frame.

    Args:
        view: What is shown.
        stream: Where to; standard output by default. In colour only on a terminal that has it.
        now: The clock, Unix seconds; the system's by default.
    """
    out: TextIO = sys.stdout if stream is None else stream
    console = _console(out)
    _print(view, console, out, time.time() if now is None else now)


def watch(
    path: str | os.PathLike[str],
    *,
    phase: str | None = None,
    interval: float = INTERVAL,
    stream: TextIO | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> View:
    """Follow a run until it is finished; Ctrl-C ends it earlier.

    A folder that holds no run yet is waited for. On a terminal the frame is drawn in place; where
    there is none, or a dumb one, a frame is printed whenever a window came.

    Args:
        path: The folder that ``attach`` was given.
        phase: The phase; None takes ``train``, or else the first there is.
        interval: Seconds between two looks.
        stream: Where to; standard output by default.
        sleep: Waits between two looks.

    Returns:
        The last view.

    Raises:
        RunNotReadable: There is something in the folder that is no run.
        ValueError: The run has no such phase.
    """
    out: TextIO = sys.stdout if stream is None else stream
    console = _console(out)
    follower = Follower(path, phase=phase)
    if console.is_terminal:
        print_line("reading the run; a long one takes a while, once", out)
        out.flush()
    first = _awaited(follower, path, out, interval, sleep)
    if not console.is_terminal or console.is_dumb_terminal:
        return _follow(
            follower,
            first,
            lambda view: _print(view, console, out, time.time(), apart=True),
            interval,
            sleep,
            only_new=True,
        )
    with Live(console=console, screen=True, auto_refresh=False) as live:
        last = _follow(
            follower,
            first,
            lambda view: live.update(_frame(view, console), refresh=True),
            interval,
            sleep,
            only_new=False,
        )
    _print(last, console, out, time.time())
    return last


def _awaited(
    follower: Follower,
    path: str | os.PathLike[str],
    out: TextIO,
    interval: float,
    sleep: Callable[[float], object],
) -> View:
    """The first view; a folder without a run in it is waited for."""
    told = False
    while True:
        try:
            return follower.refresh()
        except RunNotReadable:
            if os.path.isdir(path) and os.listdir(path):
                raise
            if not told:
                print_line("waiting for the run to begin (Ctrl-C ends)", out)
                out.flush()
                told = True
        sleep(interval)


def _follow(
    follower: Follower,
    view: View,
    draw: Callable[[View], object],
    interval: float,
    sleep: Callable[[float], object],
    *,
    only_new: bool,
) -> View:
    seen: object = None
    took = 0.0
    while True:
        state = _state(view)
        if not only_new or state != seen:
            draw(view)
        seen = state
        if view.run.finished:
            return view
        try:
            sleep(max(interval, took / BUSY - took))
        except KeyboardInterrupt:
            return view
        started = time.process_time()
        try:
            view = follower.refresh()
        except KeyboardInterrupt:
            return view
        took = time.process_time() - started


def _state(view: View) -> object:
    steps = None if view.windows is None else view.windows.spans[-1].tolist()
    return (steps, view.run.finished, len(view.alarms), view.run.faults)


def _frame(view: View, console: Console) -> Group:
    width, height = console.size
    colour = console.color_system is not None and not console.no_color
    lines = screen(
        view,
        width=width,
        height=height - 1,
        colour=colour,
        ascii_only=_ascii_only(console),
        now=time.time(),
    )
    return Group(*lines)


def _print(view: View, console: Console, out: TextIO, now: float, *, apart: bool = False) -> None:
    colour = console.color_system is not None and not console.no_color
    width = console.width
    height = console.size.height if console.is_terminal else TALL
    ascii_only = _ascii_only(console)
    lines = screen(view, width=width, height=height, colour=colour, ascii_only=ascii_only, now=now)
    for line in lines:
        if colour:
            console.print(line, soft_wrap=True)
        else:
            print_line(line.plain, out)
    if apart and not view.run.finished:
        print_line("", out)
    out.flush()


def _console(out: TextIO) -> Console:
    # on a terminal rich asks for the size at each frame, so that a window may be resized
    width = None if out.isatty() else width_of(out)
    return Console(file=out, width=width, highlight=False, markup=False, emoji=False)


def _ascii_only(console: Console) -> bool:
    encoding = (console.encoding or "ascii").lower()
    return console.is_dumb_terminal or not encoding.startswith("utf")
