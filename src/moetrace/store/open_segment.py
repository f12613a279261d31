"""The files of one segment while it is written: array rows first, then the line that names them."""

import contextlib
import errno
import os
from collections.abc import Mapping
from typing import Any

from moetrace.snapshot import Snapshot
from moetrace.store import files
from moetrace.store.array_writer import ArrayWriter
from moetrace.store.dense import DenseWriter
from moetrace.store.lines import seal_line
from moetrace.store.names import ARRAY_FILE, DENSE_FILE, LOG, SEGMENTS, SegmentName
from moetrace.store.records import columns, groups_of, parse_snapshot

__all__ = ["NO_DESCRIPTOR", "OpenSegment", "discard"]

NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
"""Errors of a process that has no file descriptor left: no page was lost."""


class OpenSegment:
    """The log and the array files of one segment, in a folder of their own.

    Args:
        root: Path of the run folder.
        name: Name of the segment.
        folder: Path of its folder, which is made.

    Attributes:
        name: Its name.
        folder: Where it is now.
        lines: Lines that were written.
        durable: Those of them that the last good sync covered.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, root: str, name: SegmentName, folder: str) -> None:
        files.make_folder(folder, fresh=True)
        try:
            self._log = files.open_append(os.path.join(folder, LOG))
        except BaseException:
            discard(folder)
            raise
        self.name, self.folder, self.lines, self.durable = name, folder, 0, 0
        self._root = root
        self._arrays, self._dense = ArrayWriter(folder), DenseWriter(folder)
        self._unsynced_parents = True
        self._unsyncable: OSError | None = None

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Write the rows of a snapshot, and then its line.

        Raises:
            OSError: It could not be written.
            ValueError: It would not be read back; nothing names its rows.
        """
        record = columns(snapshot)
        positions = groups_of([stats.num_experts for stats in snapshot.routing]).values()
        put = [
            self._arrays.put([snapshot.routing[position] for position in group])
            for group in positions
        ]
        record["arrays"] = [rows.to_record() for rows in put]
        if dense := self._dense.put(snapshot.indices):
            record["dense"] = [rows.to_record() for rows in dense]
        parse_snapshot(record)  # what would not be read back is not acknowledged
        self.put_line({"record": "snapshot"}, record)
        self._arrays.commit(put)

    def put_line(self, kind: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Write a line; returning means that the process may die.

        Raises:
            OSError: It could not be written.
        """
        line = seal_line({**kind, "line": self.lines, **record})
        files.write_all(self._log, line)
        self.lines += 1

    def move(self, folder: str) -> None:
        """Give its folder another path.

        Raises:
            OSError: It stays where it is.
        """
        files.replace(self.folder, folder)
        self.folder = self._arrays.folder = self._dense.folder = folder

    def sync(self) -> None:
        """Make everything written so far, and the names of the files, safe from a machine's death.

        Raises:
            OSError: It failed, or failed before: then nothing can make it safe any more.
        """
        # Linux marks the pages of a failed sync as clean: a second one would succeed and lie.
        if self._unsyncable is not None:
            raise self._unsyncable
        try:
            if not files.links(self._log):
                raise FileNotFoundError(errno.ENOENT, "the segment was deleted", self.folder)
            self._arrays.sync()
            self._dense.sync()
            files.sync(self._log)
            _sync_names(self.folder)
            if self._unsynced_parents:
                _sync_names(os.path.join(self._root, SEGMENTS))
                _sync_names(self._root)
        except OSError as error:
            if error.errno not in NO_DESCRIPTOR:
                self._unsyncable = error
            raise
        self._unsynced_parents = False
        self.durable = self.lines

    def close(self) -> None:
        """Close all files.

        Raises:
            OSError: One of them did not close in order; the others are closed all the same.
        """
        try:
            self._arrays.close()
        finally:
            try:
                self._dense.close()
            finally:
                files.close(self._log)


def discard(folder: str) -> bool:
    """Remove a segment that holds nothing acknowledged; whether it is gone."""
    try:
        for name in files.list_names(folder):
            if name == LOG or ARRAY_FILE.fullmatch(name) or DENSE_FILE.fullmatch(name):
                files.remove_file(os.path.join(folder, name))
        files.remove_folder(folder)
    except OSError:
        return False
    return True


def _sync_names(folder: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # moved away; its files are written on
        files.sync_folder(folder)
