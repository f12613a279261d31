"""What a reader of a stranger's run folder does, and what it may not do while it does it."""

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import moetrace
from moetrace.cli import main as command
from moetrace.errors import RunNotReadable
from moetrace.report.page import render
from moetrace.run import Run, open_run
from moetrace.store.earlier import earlier_events, earlier_weights
from moetrace.store.manifest import run_id_of_segments

COMMANDS = (
    *(("inspect",), ("inspect", "--json"), ("show",), ("show", "--json")),
    *(("doctor",), ("doctor", "--json")),
)
_FORBIDDEN = (
    *("import", "compile", "exec", "marshal", "pickle", "code", "ctypes", "mmap", "cpython"),
    *("socket", "urllib", "http", "ftplib", "smtplib", "ssl", "webbrowser", "subprocess", "pty"),
    *("shutil", "tempfile", "sqlite3", "signal", "fcntl"),
)
_LOOKS = frozenset(("os.listdir", "os.scandir", "os.walk", "os.getxattr", "os.listxattr"))
_OWN = tuple(f"{place}/" for place in (sys.prefix, sys.base_prefix, Path(moetrace.__file__).parent))
"""Where the report finds its page, and a version number stands."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def opened(root: Path) -> Run | None:
    """The run in a folder, or None where it says that none can be read."""
    try:
        return open_run(root)
    except RunNotReadable as error:
        # open_run takes any ValueError for that; one from further down is a mistake of ours
        cause = error.__cause__
        within = (
            [frame.name for frame in traceback.extract_tb(cause.__traceback__)] if cause else []
        )
        assert isinstance(cause, OSError) or within[-1:] == ["index_run"], within
        return None


def read_all(root: Path) -> None:
    """Read a folder, which may hold less than was written; nothing is raised but what is caught."""
    with contextlib.suppress(OSError):
        list(earlier_events(str(root), rank=0, attempt=2))
        earlier_weights(str(root), rank=0, attempt=2, step=10)
    run = opened(root)
    if run is None:
        return
    json.dumps(run.summary())
    run.events()
    for phase in run.phases:
        for snapshot in run.windows(phase=phase):
            json.dumps([snapshot.to_dict(), snapshot.metrics(per_layer=True)])
        run.snapshots(phase=phase, superseded=True)


def show_all(root: Path) -> None:
    """Show a folder in every way: as tables, as a page, and by commands, with 0 or one line why."""
    run_id_of_segments(str(root))
    run = opened(root)
    if run is not None:
        for phase in run.phases:
            assert run.counts(phase=phase).ndim == 3
            run.metric("load_cv", phase=phase)
            for table in run.tables(phase=phase):
                list(run.draws(table, phase=phase))
        with contextlib.suppress(RunNotReadable):  # counts past what a browser holds
            render(run)
    for name, *options in COMMANDS:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command([name, str(root), *options])
        assert code in ((0, 1, 2) if name == "doctor" else (0, 2))
        told = err.getvalue()
        assert (code == 2) == (len(told.splitlines()) == 1)
        missing = "found no phase" in told or "found no window" in told
        assert code != 2 or run is None or missing, told


class Watch:
    """Sees what the interpreter asks of the system; it stays for the life of the process.

    A reader opens the run folder and names in it, to read. Whatever else it does (another path, a
    write, a connection, a process, an import, code that is compiled) is an `AssertionError`.
    """

    def __init__(self) -> None:
        self._root: str | None = None
        self._seen: list[str] = []
        sys.addaudithook(self._audit)

    @contextlib.contextmanager
    def over(self, root: Path) -> Iterator[None]:
        """Watch what is done in here; the run folder is ``root``."""
        self._root, self._seen = str(root), []
        try:
            yield
        finally:
            self._root = None
        assert not self._seen, self._seen[:3]

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._root is None:
            return
        if event == "open":
            allowed = self._may_open(arguments)
        elif event.startswith("os."):
            allowed = event in _LOOKS
        else:
            allowed = event.partition(".")[0] not in _FORBIDDEN
        if not allowed:
            self._seen.append(f"{event}{arguments!r:.200}")

    def _may_open(self, arguments: tuple[Any, ...]) -> bool:
        path, _, flags = arguments
        if not isinstance(path, str) or not isinstance(flags, int) or flags & _WRITES:
            return False
        return path == self._root or ("/" not in path and path != "..") or path.startswith(_OWN)
