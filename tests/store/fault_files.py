"""Makes operations of `moetrace.store.files` fail, by their number."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from moetrace.store import files

OPERATIONS = ("make_folder", "open_append", "open_sized", "truncate", "write", "pwrite", "sync")


@dataclass
class Faults:
    """Fails the ``first`` operation (from 1) and ``lasting - 1`` after it.

    A ``landing`` write reaches the file whole and is reported as failed all the same.
    """

    error: int
    first: int
    lasting: int = 1
    landing: bool = False
    done: int = 0
    fired: list[str] = field(default_factory=list)

    @contextmanager
    def injected(self) -> Iterator[None]:
        """All operations of the store fail as told, while this lasts."""
        patches = [
            mock.patch.object(files, name, self._failing(name, getattr(files, name)))
            for name in OPERATIONS
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
            self.done += 1
            if not self.first <= self.done < self.first + self.lasting:
                return operation(*args, **options)
            self.fired.append(name)
            if self.landing and name in ("write", "pwrite"):
                operation(*args, **options)
            raise OSError(self.error, os.strerror(self.error))

        return attempted
