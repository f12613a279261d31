"""Full disks, input/output errors and short writes, at every operation of a writer in turn."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from moetrace.run import open_run
from moetrace.snapshot import Snapshot, merge
from moetrace.store import SegmentWriter, files
from tests.store.fault_files import Faults
from tests.store.windows import plain, window, writer

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
    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT])
    @pytest.mark.parametrize("lasting", [1, 2, 5, 30])
    def test_every_count_is_in_the_run_exactly_once(
        self, tmp_path: Path, error: int, lasting: int
    ) -> None:
        """Whichever operation fails, once or for a while, the sums of the run stay exact."""
        assert until_none_fires(tmp_path, error=error, lasting=lasting) > 20

    def test_a_write_that_failed_and_landed_all_the_same_counts_once(self, tmp_path: Path) -> None:
        """What an error reported as unwritten, and is on the disk, is not added twice."""
        assert until_none_fires(tmp_path, error=errno.EIO, landing=True) > 20

    def test_a_disk_that_stays_full_leaves_no_litter(self, tmp_path: Path) -> None:
        """Segments that never held anything acknowledged are removed again."""
        segment = writer(tmp_path)
        segment.append(WINDOWS[0])
        with Faults(error=errno.ENOSPC, first=4, lasting=10**6).injected():
            for snapshot in WINDOWS[1:]:
                with pytest.raises(OSError, match="No space left"):
                    segment.append(snapshot)
        segment.close()
        assert len(list(tmp_path.glob("segments/*"))) == 1
        assert plain(open_run(tmp_path).snapshots()) == plain(WINDOWS[:1])


class TestShortWrite:
    @pytest.mark.parametrize("taken", [1, 7, 100])
    def test_the_rest_is_written_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
    ) -> None:
        """A system that takes a few bytes at a time changes nothing in the run."""
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
        """A line that was begun is written whole to a fresh segment and counts once."""
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
        """Writes that are interrupted for ever, or take 0 bytes, end in an error, not in a loop."""
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
        """EINTR and EAGAIN are no failures."""
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


class TestFailingSync:
    def test_the_segment_is_sealed_and_said_to_be_degraded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A failed sync is not tried again in that file: the next record goes to a fresh one."""
        synced: list[int] = []

        def fails_once(descriptor: int) -> None:
            synced.append(descriptor)
            if len(synced) == 1:
                raise OSError(errno.EIO, "Input/output error")

        clock = iter([0.0, 11.0])
        monkeypatch.setattr(files, "monotonic", lambda: next(clock, 11.0))
        monkeypatch.setattr(files, "sync", fails_once)
        segment = writer(tmp_path)
        assert segment.durability == "synced"
        segment.append(WINDOWS[0])
        assert segment.durability == "degraded"
        segment.append(WINDOWS[1])
        segment.close()
        assert len(list(tmp_path.glob("segments/*"))) == 2
        run = open_run(tmp_path)
        assert plain(run.snapshots()) == plain(WINDOWS[:2])
        assert run.faults == ()

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
