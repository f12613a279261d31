"""The page of a run as it stands now, formed again only when the folder has changed."""

import hashlib
import os
import threading
import time
from dataclasses import dataclass

from moetrace.errors import RunNotReadable
from moetrace.report import render
from moetrace.run import open_run

__all__ = ["Page", "Pages"]

REST = 4.0
"""A page that took long to form rests for this many times as long before it is formed again."""

MOST_FILES = 65536
"""Files of a folder that are looked at: two per rank and attempt, and a few."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        text: HTML.
        policy: Its Content-Security-Policy.
        state: What the folder was like when it was formed.
    """

    text: str
    policy: str
    state: str


class Pages:
    """Forms the page of one run folder; used by several threads.

    Args:
        path: The folder that ``attach`` was given.

    Raises:
        RunNotReadable: There is no run in it, or none that can be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._lock = threading.Lock()
        self._page: Page | None = None
        self._ready_at = 0.0
        self.run_id = open_run(path).run_id

    def state(self) -> str:
        """What the next page would be of: changes when the folder does and a page may be formed.

        Cost: one listing of the folder.
        """
        page = self._page
        if page is not None and time.monotonic() < self._ready_at:
            return page.state
        return _state(self._path)

    def page(self) -> Page:
        """The page now. While one thread forms it, the others wait for the same one.

        Raises:
            RunNotReadable: The run has gone.
        """
        with self._lock:
            state = self.state()
            if self._page is None or self._page.state != state:
                started = time.monotonic()
                text, policy = _rendered(self._path, state)
                self._page = Page(text, policy, state)
                took = time.monotonic() - started
                self._ready_at = time.monotonic() + REST * took
            return self._page


def _rendered(path: str, state: str) -> tuple[str, str]:
    text = render(open_run(path), live=state)
    start = text.index('content="', text.index("Content-Security-Policy")) + len('content="')
    return text, text[start : text.index('"', start)]


def _state(path: str) -> str:
    """Names, sizes and times of the files of a run, as a short text."""
    seen: list[tuple[str, int, int]] = []
    try:
        for folder, _, names in os.walk(path):
            for name in sorted(names)[:MOST_FILES]:
                if not name.endswith(".html"):
                    found = os.lstat(os.path.join(folder, name))
                    seen.append((os.path.join(folder, name), found.st_size, found.st_mtime_ns))
    except OSError as error:
        raise RunNotReadable(f"cannot read the run in {path!r}: {error.strerror}") from error
    return hashlib.sha256(repr(sorted(seen)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
