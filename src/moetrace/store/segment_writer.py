"""Writes the segments of one process, and goes on in a fresh one where a disk fails.

The line is the commit. `SegmentWriter.append` returns when the write of the line has returned: the
snapshot then survives the death of the process, though not that of the machine before the next
sync. After any failed write the segment is sealed and a fresh one takes what was not acknowledged;
the header of the fresh one says how many lines of the sealed one count. After a failed sync a fresh
one also takes, again, what was acknowledged since the sync before, and appears only when it holds
all of that.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from moetrace.snapshot import Snapshot
from moetrace.store import files
from moetrace.store.arrays import TENSORS
from moetrace.store.lines import plain
from moetrace.store.names import SEGMENTS, SegmentName, unfinished
from moetrace.store.open_segment import NO_DESCRIPTOR, OpenSegment, discard
from moetrace.store.schema import FORMAT

__all__ = ["HEADER_KEYS", "SegmentWriter"]

HEADER_KEYS = frozenset(
    ("record", "line", "format", "run_id", "rank", "attempt", "pid", "nonce", "created", "voids")
)
"""Keys of a header line that the store writes itself."""

SYNC_SECONDS = 10.0
"""Longest time that acknowledged lines wait for their sync while the run goes on."""

MAX_RETAINED = 64 << 20
"""Bytes of acknowledged records that are kept until their sync; beyond it that comes early."""

MOST_RETAINED = 64
"""Records after which the sync comes early, so that a rate that varies does not move memory."""

MOST_FAILED_SYNCS = 3
"""Failed syncs in a row that are answered by writing again; a disk that never syncs is left be."""

_RECORD_BYTES = 4096  # about what a record takes beside its vectors

Put = Callable[[OpenSegment], None]
"""Writes one record into the segment that is open."""


class SegmentWriter:
    """The log and the array files of one process. One thread uses it, in one process.

    Args:
        root: Path of the run folder.
        run_id: Name of the run.
        rank: Rank of this process.
        attempt: Attempt of this rank, claimed for this process.
        header: What the first line of every segment says besides the store's own keys.

    Attributes:
        header: What the header says besides the store's own keys.
        durability: ``"synced"``, or ``"degraded"`` once a sync has failed. What had been
            acknowledged since the sync before was then written again; where that failed too, it may
            be lost with the machine.

    Raises:
        OSError: The first segment cannot be made.
        ValueError: The header uses a key of the store's own, or is too long.
        TypeError: The header holds something that cannot be stored.
    """

    def __init__(
        self, *, root: str, run_id: str, rank: int, attempt: int, header: Mapping[str, Any]
    ) -> None:
        taken = HEADER_KEYS & header.keys()
        if taken:
            raise ValueError(f"the header has {sorted(taken)}, which the run folder writes itself")
        self.rank, self.attempt, self.run_id = rank, attempt, run_id
        self.durability = "synced"
        self._root = root
        self.header = plain(header)
        self._process = files.process_id()
        self._voids: dict[str, int] = {}
        self._at_risk: dict[str, int] = {}  # lines of sealed segments that a failed sync left safe
        self._told: dict[str, int] = {}  # what headers say that no good sync has covered
        self._retained: list[tuple[Put, int]] = []  # acknowledged, not yet synced
        self._failed_syncs = 0
        self._closed = False
        self._snapshots = 0
        self._segment: OpenSegment | None = None
        self._open()

    @property
    def name(self) -> SegmentName | None:
        """Name of the open segment, or None while none is open."""
        return None if self._segment is None else self._segment.name

    @property
    def unsynced(self) -> int:
        """Acknowledged records that the death of the machine could still take."""
        return len(self._retained)

    def append(self, snapshot: Snapshot) -> None:
        """Write a snapshot; returning means that it is acknowledged.

        Cost: a pwrite per tensor and group of layers, and one write. The snapshot is kept until the
        next sync, at most 64 of them or 64 MiB.

        Raises:
            OSError: It could not be written, in a fresh segment neither, and is not in the run.
                A later call may succeed.
            ValueError: It is another rank's, attempt's or run's, or would not be read back.
            TypeError: Its ``health`` holds something that cannot be stored.
        """
        found = (snapshot.run_id, snapshot.rank, snapshot.attempt)
        own = (self.run_id, self.rank, self.attempt)
        if found != own:
            raise ValueError(f"found a snapshot of (run, rank, attempt) {found}, this is {own}")
        snapshot = replace(
            snapshot,
            indices=tuple(item if item.due else item.reduced() for item in snapshot.indices),
        )
        size = sum(getattr(stats, name).nbytes for stats in snapshot.routing for name in TENSORS)
        size += sum(item.nbytes for item in snapshot.indices)
        self._commit(lambda segment: segment.put_snapshot(snapshot), size)
        self._snapshots += 1

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write something that happened, such as an alert or a change of phase.

        Args:
            kind: What happened, in a word.
            fields: Numbers, strings, lists and mappings about it.

        Raises:
            OSError: It could not be written.
            ValueError: It would not be read back.
            TypeError: The fields hold something that cannot be stored.
        """
        if not kind:
            raise ValueError("found an event without a kind; say in a word what happened")
        record = {"kind": plain(kind), "wall_time": files.wall(), "fields": plain(fields)}
        self._commit(lambda segment: segment.put_line({"record": "event"}, record), 0)

    def close(self) -> None:
        """Write the end of the log, sync everything and close; again has no effect.

        Raises:
            OSError: The end or the sync failed. Everything acknowledged stays in the log.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if files.process_id() == self._process and (self.name is not None or self._at_risk):
                self._end()
        finally:
            self._release()

    def _end(self) -> None:
        def put(segment: OpenSegment) -> None:
            segment.put_line({"record": "end"}, {"snapshots": self._snapshots})
            self._sync(segment)

        self._put(put)

    def _put(self, put: Put) -> OpenSegment:
        """Put it into the open segment, or where that fails into a fresh one."""
        try:
            return self._in_open_segment(put)
        except OSError:
            return self._in_open_segment(put)

    def _commit(self, put: Put, size: int) -> None:
        if self._closed:
            raise ValueError("the segment is closed; open another one to write more")
        if files.process_id() != self._process:
            raise RuntimeError("a forked process cannot write its parent's segment; attach there")
        segment = self._put(put)
        self._voids = {}
        self._retained.append((put, size + _RECORD_BYTES))
        if self._sync_is_due():
            self._sync_or_write_again(segment)

    def _sync_is_due(self) -> bool:
        # Not by their number once syncs fail: a disk in trouble gets its seconds between two tries.
        many = not self._failed_syncs and len(self._retained) % MOST_RETAINED == 0
        late = files.monotonic() - self._synced_at >= SYNC_SECONDS
        return many or late or self._kept_bytes() > MAX_RETAINED

    def _kept_bytes(self) -> int:
        return sum(kept for _, kept in self._retained)

    def _in_open_segment(self, put: Put) -> OpenSegment:
        segment = self._segment or self._open()
        try:
            put(segment)
        except (ValueError, TypeError):
            raise  # found before the line was written
        except BaseException:
            self._seal(segment)
            raise
        return segment

    def _open(self) -> OpenSegment:
        name = SegmentName(self.attempt, self.rank, files.token(8))
        folder = os.path.join(self._root, SEGMENTS, str(name))
        # Until what is written again is all there, the sealed segment counts and this one does not.
        made = unfinished(folder) if self._at_risk else folder
        segment = OpenSegment(self._root, name, made)
        self._segment, self._synced_at = segment, files.monotonic()
        try:
            segment.put_line({"record": "header"}, self._own_header(name))
            self._told = self._all_voids()
            if self._at_risk:
                self._write_again(segment, folder)
        except BaseException:
            with contextlib.suppress(OSError):
                self._release()
            # A header that failed and landed makes a valid segment without records.
            discard(made)
            raise
        return segment

    def _write_again(self, segment: OpenSegment, folder: str) -> None:
        for put, _ in self._retained:
            put(segment)
        segment.move(folder)
        self._at_risk = {}
        with contextlib.suppress(OSError):
            self._sync(segment)  # where this fails too, the next sync finds out and tries again

    def _own_header(self, name: SegmentName) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "rank": self.rank,
            "attempt": self.attempt,
            "pid": self._process,
            "nonce": name.nonce,
            "created": files.wall(),
            "voids": self._all_voids(),
            **self.header,
        }

    def _all_voids(self) -> dict[str, int]:
        # A crash may take a header that says them: until it is synced the next ones repeat it.
        return {**self._told, **self._voids, **self._at_risk}

    def _sync(self, segment: OpenSegment) -> None:
        segment.sync()
        self._synced_at = files.monotonic()
        self._retained, self._failed_syncs, self._told = [], 0, {}

    def _sync_or_write_again(self, segment: OpenSegment) -> None:
        try:
            self._sync(segment)
        except OSError as error:
            self._synced_at = files.monotonic()
            if error.errno in NO_DESCRIPTOR and self._kept_bytes() <= MAX_RETAINED:
                return  # a folder needs one to be synced; no page was lost
            self._note_failed_sync()
            if self._failed_syncs > MOST_FAILED_SYNCS:
                return
            self._seal_unsynced(segment)
            with contextlib.suppress(OSError):
                self._open()  # otherwise the next append does

    def _note_failed_sync(self) -> None:
        self.durability = "degraded"
        self._failed_syncs += 1
        if self._failed_syncs > MOST_FAILED_SYNCS:
            self._retained = []

    def _seal(self, segment: OpenSegment) -> None:
        # A failed write may have reached the disk all the same. The next header says how many lines
        # of this segment count, so that what is written again is not counted twice.
        lines = segment.lines
        try:
            if lines > 1:
                self._sync(segment)
        except OSError:
            self._note_failed_sync()
            if self._retained:
                self._seal_unsynced(segment)
                return
        with contextlib.suppress(OSError):
            self._release()
        if lines > 1 or not discard(segment.folder):
            self._voids = {**self._voids, segment.name.nonce: lines}

    def _seal_unsynced(self, segment: OpenSegment) -> None:
        # The pages may be dropped at any time: only what the last good sync covered still counts
        # when the rest is written again.
        self._at_risk = {**self._at_risk, segment.name.nonce: segment.durable}
        with contextlib.suppress(OSError):
            self._release()

    def _release(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()
