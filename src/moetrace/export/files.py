# pyright: strict
"""Files of an export: whole or not there at all, never half."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

__all__ = ["Drafts", "json_text"]


class Drafts:
    """Files that are written under other names and all put in place at the end.

    Used with ``with``: where the block raises, nothing is put in place and the drafts are removed.

    Args:
        folder: Where to; it is made with the first draft.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._drafts: dict[str, Path] = {}

    def draft(self, name: str) -> Path:
        """Where the content of a file is to be written.

        Args:
            name: The file's name; ours, never from a run.

        Raises:
            OSError: The folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".{name}.{secrets.token_hex(4)}"
        self._drafts[name] = path
        return path

    def write(self, name: str, content: bytes) -> None:
        """Write a file at once."""
        self.draft(name).write_bytes(content)

    @property
    def files(self) -> list[Path]:
        """The files, by their own names."""
        return [self.folder / name for name in self._drafts]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, path in self._drafts.items():
            if kind is None:
                path.replace(self.folder / name)
            else:
                path.unlink(missing_ok=True)


def json_text(record: Mapping[str, Any]) -> bytes:
    """A record as JSON that any reader takes: NaN and infinity are null.

    >>> print(json_text({"a": float("nan")}).decode(), end="")
    {
      "a": null
    }
    """
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(record, option=options, default=str)
