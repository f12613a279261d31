"""Full disks, input/output errors and short writes, at every operation of a writer in turn."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from moetrace.run import open_run
from moetrace.snapshot import Snapshot, merge
from moetrace.store import SegmentWriter, files
from tests.store.fault_files import KILL, Faults
from tests.store.windows import log_of, plain, window, write, writer

WINDOWS = [window(seq, {"a": (seq, 1), "b": (seq, 2, 3)}) for seq in range(4)]


def written(segment: SegmentWriter, snapshots: Sequence[Snapshot]) -> Snapshot | None:
    """Append as the tracer's writer does: what fails is added to the next; what is left over."""
    waiting: Snapshot | None = None
    for snapshot in snapshots:
        waiting = snapshot if waiting is None else merge([waiting, snapshot])
        try:
            segment.append(waiting)
        except OSError:
            continue
        waiting = None
    return waiting


def segment_of(root: Path, *, records: int) -> str:
    """Name of the segment whose log has that many lines."""
    (name,) = [
        path.parent.name
        for path in root.glob("segments/*/log.jsonl")
        if len(path.read_bytes().splitlines()) == records
    ]
    return name


def until_none_fires(root: Path, **fault: object) -> int:
    """Write the windows with the first, second, ... operation failing; the number that failed."""
    for first in range(1, 1000):
        folder = root / str(first)
        segment = writer(folder)
        faults = Faults(first=first, **fault)  # type: ignore[arg-type]
        with faults.injected():
            left = written(segment, WINDOWS)
        if left is not None:
            segment.append(left)
        segment.close()
        found = open_run(folder).snapshots()
        assert merge(found).to_dict() == {
            **merge(WINDOWS).to_dict(),
            "seq": found[-1].seq,
        }, f"operation {first} ({faults.fired}) changed the sums"
        if not faults.fired:
            assert plain(found) == plain(WINDOWS)
            return first - 1
    raise AssertionError("the faults never end")


class TestFailingOperation:
    @pytest.mark.parametrize(
        "error", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.ESTALE]
    )
    @pytest.mark.parametrize("lasting", [1, 2, 5, 30])
    def test_every_count_is_in_the_run_exactly_once(
        self, tmp_path: Path, error: int, lasting: int
    ) -> None:
        """C1, C4: whichever operation fails, once or for a while, the sums of the run stay exact.

        Space that returns is written to again, at the next window.
        """
        assert until_none_fires(tmp_path, error=error, lasting=lasting) > 20

    def test_a_write_that_failed_and_landed_all_the_same_counts_once(self, tmp_path: Path) -> None:
        """C4: what an error reported as unwritten, and is on the disk, is not added twice."""
        assert until_none_fires(tmp_path, error=errno.EIO, landing=True) > 20

    @pytest.mark.parametrize("taken", [1, 20, 37, 300])
    def test_a_short_write_before_the_error_counts_once(self, tmp_path: Path, taken: int) -> None:
        """C2, C3: the first symptom of a limit is a short write, the second one its error."""
        assert until_none_fires(tmp_path, error=errno.EFBIG, taken=taken) > 20

    def test_a_disk_that_stays_full_leaves_no_litter(self, tmp_path: Path) -> None:
        """C1: segments that never held anything acknowledged are removed again."""
        segment = writer(tmp_path)
        segment.append(WINDOWS[0])
        full = ("make_folder", "open_append", "open_sized", "truncate", "write", "pwrite")
        with Faults(errno.ENOSPC, first=4, lasting=10**6, operations=full).injected():
            for snapshot in WINDOWS[1:]:
                with pytest.raises(OSError, match="No space left"):
                    segment.append(snapshot)
        segment.close()
        assert len(list(tmp_path.glob("segments/*"))) == 1
        assert plain(open_run(tmp_path).snapshots()) == plain(WINDOWS[:1])

    def test_a_limit_of_file_lengths_makes_array_files_shorter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C2: where a file of 1024 rows may not be, one with fewer rows is made."""
        truncate = files.truncate

        def limited(descriptor: int, length: int) -> None:
            if length > 3_000:
                raise OSError(errno.EFBIG, "File too large")
            truncate(descriptor, length)

        monkeypatch.setattr(files, "truncate", limited)
        segment = writer(tmp_path)
        for snapshot in WINDOWS:
            segment.append(snapshot)
        segment.close()
        run = open_run(tmp_path)
        assert (plain(run.snapshots()), run.faults) == (plain(WINDOWS), ())
        assert len(list(tmp_path.glob("segments/*-*-*"))) == 1


class TestShortWrite:
    @pytest.mark.parametrize("taken", [1, 7, 100])
    def test_the_rest_is_written_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
    ) -> None:
        """C3: a system that takes a few bytes at a time changes nothing in the run."""
        monkeypatch.setattr(files, "write", lambda fd, data: os.write(fd, data[:taken]))
        monkeypatch.setattr(files, "pwrite", lambda fd, data, at: os.pwrite(fd, data[:taken], at))
        segment = writer(tmp_path)
        assert written(segment, WINDOWS) is None
        segment.close()
        run = open_run(tmp_path)
        assert plain(run.snapshots()) == plain(WINDOWS)
        assert run.faults == ()

    def test_an_error_after_half_a_line_leaves_a_torn_tail(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C2: a line that was begun is written whole to a fresh segment and counts once."""
        segment = writer(tmp_path)
        segment.append(WINDOWS[0])
        takes = iter([90, 10])

        def full(descriptor: int, data: memoryview) -> int:
            part = next(takes, None)
            if part is None:
                monkeypatch.undo()
                raise OSError(errno.EFBIG, "File too large")
            return os.write(descriptor, data[:part])

        monkeypatch.setattr(files, "write", full)
        segment.append(WINDOWS[1])
        segment.close()
        run = open_run(tmp_path)
        assert plain(run.snapshots()) == plain(WINDOWS[:2])
        assert [fault.partition(": ")[2] for fault in run.faults] == [
            "torn tail: the last 100 bytes are not a whole line (yet)"
        ]

    def test_a_file_that_takes_nothing_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C3: writes interrupted for ever, or that take 0 bytes, end in an error, not in a loop."""
        segment = writer(tmp_path)
        monkeypatch.setattr(files, "pwrite", lambda fd, data, at: 0)
        with pytest.raises(OSError, match="took 0 of"):
            segment.append(WINDOWS[0])
        monkeypatch.undo()
        segment.append(WINDOWS[0])
        segment.close()
        assert plain(open_run(tmp_path).snapshots()) == plain(WINDOWS[:1])

    def test_an_interrupted_write_is_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C3: EINTR and EAGAIN are no failures."""
        troubles = iter([InterruptedError(), BlockingIOError()])

        def interrupted(descriptor: int, data: memoryview) -> int:
            for trouble in troubles:
                raise trouble
            return os.write(descriptor, data)

        monkeypatch.setattr(files, "write", interrupted)
        segment = writer(tmp_path)
        segment.append(WINDOWS[0])
        segment.close()
        run = open_run(tmp_path)
        assert plain(run.snapshots()) == plain(WINDOWS[:1])
        assert run.faults == ()

    def test_every_split_of_a_line_is_torn_until_it_is_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C3: a line that breaks off after any number of bytes is read once, from elsewhere."""
        write(tmp_path / "whole", WINDOWS[:2])
        length = len(log_of(tmp_path / "whole").read_bytes().splitlines(keepends=True)[2])
        for taken in range(1, length, 7):
            root = tmp_path / str(taken)
            segment = writer(root)
            segment.append(WINDOWS[0])
            faults = Faults(errno.EIO, first=1, taken=taken, operations=("write",))
            with faults.injected():
                segment.append(WINDOWS[1])
            segment.close()
            assert faults.fired == ["write"]
            assert plain(open_run(root).snapshots()) == plain(WINDOWS[:2])


class Clock:
    """A clock of the store that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(files, "monotonic", lambda: self.now)


class TestFailingSync:
    def written(self, root: Path, clock: Clock, *, failing: range) -> SegmentWriter:
        """A writer that appended three windows and then ran into those syncs."""
        segment = writer(root)
        for snapshot in WINDOWS[:3]:
            segment.append(snapshot)
        assert (segment.durability, segment.unsynced) == ("synced", 3)
        clock.now += 11
        syncs = Faults(errno.EIO, failing.start, len(failing), operations=("sync",))
        with syncs.injected():
            segment.append(WINDOWS[3])
        return segment

    def test_all_since_the_last_good_sync_is_written_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5: a failed sync is never retried in its file; a fresh segment takes what it covered."""
        segment = self.written(tmp_path, Clock(monkeypatch), failing=range(1, 2))
        assert (segment.durability, segment.unsynced) == ("degraded", 0)
        before, after = sorted(tmp_path.glob("segments/*-*-*"), key=lambda path: path.stat().st_ino)
        if str(segment.name) == before.name:
            before, after = after, before
        segment.close()
        header, *rest = [json.loads(line) for line in (after / "log.jsonl").open()]
        assert header["voids"] == {before.name[-8:]: 0}
        assert [line["record"] for line in rest] == ["snapshot"] * 4 + ["end"]
        run = open_run(tmp_path)
        assert (plain(run.snapshots()), run.faults, run.finished) == (plain(WINDOWS), (), True)
        for path in before.iterdir():
            path.unlink()  # the pages that the failed sync left behind are gone
        before.rmdir()
        assert plain(open_run(tmp_path).snapshots()) == plain(WINDOWS)

    def test_what_a_sync_has_covered_stays_where_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5: only lines past the last good sync are void and written again."""
        clock = Clock(monkeypatch)
        segment = writer(tmp_path)
        segment.append(WINDOWS[0])
        clock.now += 11
        segment.append(WINDOWS[1])
        assert segment.unsynced == 0
        sealed = segment.name
        clock.now += 11
        with Faults(errno.EIO, first=1, operations=("sync",)).injected():
            segment.append(WINDOWS[2])
        segment.close()
        (header,) = [
            json.loads(path.read_bytes().splitlines()[0])
            for path in tmp_path.glob("segments/*/log.jsonl")
            if path.parent.name != str(sealed)
        ]
        assert sealed is not None
        assert header["voids"] == {sealed.nonce: 3}
        assert plain(open_run(tmp_path).snapshots()) == plain(WINDOWS[:3])

    def test_an_event_is_written_again_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5: an alert that a failed sync left behind is in the run once."""
        clock = Clock(monkeypatch)
        segment = writer(tmp_path)
        segment.event("alert", {"layer": "a"})
        clock.now += 11
        with Faults(errno.EIO, first=1, operations=("sync",)).injected():
            segment.append(WINDOWS[0])
        segment.close()
        run = open_run(tmp_path)
        assert [event["kind"] for event in run.events()] == ["alert"]
        assert plain(run.snapshots()) == plain(WINDOWS[:1])

    def test_nobody_sees_the_fresh_segment_before_it_is_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5, D2: killed at any operation of the recovery, each acknowledged window counts once."""
        clock = Clock(monkeypatch)
        for number in range(1, 100):
            root = tmp_path / str(number)
            segment = writer(root)
            for snapshot in WINDOWS[:3]:
                segment.append(snapshot)
            clock.now += 11
            sync, killing = files.sync, Faults(KILL, first=number).injected()

            def fails(descriptor: int, sync: Any = sync, killing: Any = killing) -> None:
                files.sync = sync
                killing.__enter__()
                raise OSError(errno.EIO, "Input/output error")

            child = os.fork()
            if child == 0:
                segment._process = os.getpid()  # as if it had been its writer all the time
                files.sync = fails
                segment.append(WINDOWS[3])
                os._exit(9)
            status = os.waitpid(child, 0)[1]
            segment.close()
            found = plain(open_run(root).snapshots())
            assert found == plain(WINDOWS), number
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 9
                break
        assert number > 15

    def test_a_disk_that_never_syncs_is_left_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5: after four failed syncs in a row nothing is written twice any more."""
        clock = Clock(monkeypatch)
        segment = writer(tmp_path)
        with Faults(errno.EIO, 1, 10**6, operations=("sync", "sync_folder")).injected():
            for seq in range(20):
                clock.now += 11
                segment.append(window(seq))
        segment.close()
        assert segment.durability == "degraded"
        assert len(list(tmp_path.glob("segments/*-*-*"))) <= 6
        assert plain(open_run(tmp_path).snapshots()) == plain([window(seq) for seq in range(20)])

    def test_without_a_free_descriptor_a_sync_is_put_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C19: a folder that cannot be opened to be synced is synced later; nothing is sealed."""
        clock = Clock(monkeypatch)
        segment = writer(tmp_path)
        clock.now += 11
        with Faults(errno.EMFILE, 1, 10**6, operations=("sync_folder",)).injected():
            segment.append(WINDOWS[0])
            assert (segment.durability, segment.unsynced) == ("synced", 1)
        clock.now += 11
        segment.append(WINDOWS[1])
        assert (segment.durability, segment.unsynced) == ("synced", 0)
        segment.close()
        assert len(list(tmp_path.glob("segments/*-*-*"))) == 1

    def test_a_full_array_file_that_did_not_sync_is_not_forgotten(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5: rows of a file that failed to sync when it was full are written again."""
        monkeypatch.setattr("moetrace.store.array_writer.row_count", lambda entries: 2)
        segment = writer(tmp_path)
        with Faults(errno.EIO, first=1, operations=("sync",)).injected():
            for seq in range(3):
                segment.append(window(seq))
        assert segment.durability == "degraded"
        segment.close()
        sealed = min(tmp_path.glob("segments/*/log.jsonl"), key=lambda path: path.stat().st_size)
        assert len(sealed.read_bytes().splitlines()) == 3
        sealed.unlink()
        assert plain(open_run(tmp_path).snapshots()) == plain([window(seq) for seq in range(3)])

    def test_a_damaged_header_does_not_make_records_count_twice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5, C12: where the line that voids another segment is lost, numbers still tell."""
        segment = self.written(tmp_path, Clock(monkeypatch), failing=range(1, 2))
        segment.close()
        log = tmp_path / "segments" / str(segment_of(tmp_path, records=6)) / "log.jsonl"
        log.write_bytes(b"x" + log.read_bytes()[1:])
        assert plain(open_run(tmp_path).snapshots()) == plain(WINDOWS)

    def test_many_bytes_are_not_kept_for_long(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """B4: what is kept for a failing sync is bounded; beyond it the sync comes early."""
        Clock(monkeypatch)
        monkeypatch.setattr("moetrace.store.segment_writer.MAX_RETAINED", 20_000)
        segment = writer(tmp_path)
        kept = []
        for seq in range(12):
            segment.append(window(seq))
            kept.append(segment.unsynced)
        segment.close()
        assert kept == [1, 2, 3, 4, 0] * 2 + [1, 2]

    def test_the_memory_of_fast_windows_does_not_follow_their_rate(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """B4, H4: of small windows 64 are kept at most, however many a second there are."""
        Clock(monkeypatch)
        segment = writer(tmp_path)
        kept = []
        for seq in range(200):
            segment.append(window(seq))
            kept.append(segment.unsynced)
        segment.close()
        assert kept == [*range(1, 64), 0] * 3 + [*range(1, 9)]

    def test_fast_windows_leave_a_failing_disk_its_ten_seconds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5: after a failed sync none comes early, so that a short trouble is outlived."""
        clock = Clock(monkeypatch)
        segment = self.written(tmp_path, clock, failing=range(1, 3))
        assert (segment.durability, segment.unsynced) == ("degraded", 4)
        for seq in range(4, 200):
            segment.append(window(seq))
        assert segment.unsynced == 200
        clock.now += 11
        segment.append(window(200))
        assert segment.unsynced == 0
        segment.close()

    def test_records_are_synced_at_most_every_ten_seconds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Appending for 9 seconds syncs nothing; the append after 10 syncs rows and log."""
        now = [0.0]
        synced: list[int] = []
        monkeypatch.setattr(files, "monotonic", lambda: now[0])
        monkeypatch.setattr(files, "sync", synced.append)
        segment = writer(tmp_path)
        for second, expected in ((0.0, 0), (9.9, 0), (10.0, 3), (19.9, 3)):
            now[0] = second
            segment.append(WINDOWS[0])
            assert len(synced) == expected
        segment.close()
        assert len(synced) == 6
