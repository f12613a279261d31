"""Makes operations of `moetrace.store.files` fail, by their number."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from moetrace.store import files

WRITES = ("write", "pwrite")
OPERATIONS = (
    "make_folder",
    "open_append",
    "open_sized",
    "truncate",
    "sync",
    "sync_folder",
    "replace",
    "link",
    "remove_file",
    "remove_folder",
    "close",
    *WRITES,
)
"""What changes something on a disk; a test may name fewer."""

KILL = -1
"""In the place of an error number: SIGKILL of this process."""


@dataclass
class Faults:
    """Fails the ``first`` operation (from 1) and ``lasting - 1`` after it.

    A ``landing`` write reaches the file whole and is reported as failed all the same. Of a write
    that fails, ``taken`` bytes reach the file first, as a short write without an error.
    """

    error: int
    first: int
    lasting: int = 1
    landing: bool = False
    taken: int = 0
    operations: tuple[str, ...] = OPERATIONS
    done: int = 0
    fired: list[str] = field(default_factory=list)
    _began: bool = False

    @contextmanager
    def injected(self) -> Iterator[None]:
        """All operations of the store fail as told, while this lasts."""
        patches = [
            mock.patch.object(files, name, self._failing(name, getattr(files, name)))
            for name in self.operations
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()

    def _failing(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def attempted(*args: Any, **options: Any) -> Any:
            if self._began:  # the rest of a write of which a part was taken
                self._began = False
            else:
                self.done += 1
                if not self.first <= self.done < self.first + self.lasting:
                    return operation(*args, **options)
                if name in WRITES and 0 < self.taken < len(args[1]):
                    self._began = True
                    return operation(args[0], args[1][: self.taken], *args[2:])
            self.fired.append(name)
            if self.error == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if (self.landing and name in WRITES) or name == "close":
                operation(*args, **options)  # Linux closes, whatever it reports
            raise OSError(self.error, os.strerror(self.error))

        return attempted
