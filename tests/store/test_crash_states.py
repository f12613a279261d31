"""After the death of the machine: everything that was synced is there, and nothing is invented."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from moetrace.errors import RunNotReadable
from moetrace.run import open_run
from moetrace.store import RunFolder, files
from tests.store.crash_states import Disk
from tests.store.windows import HEADER, window

WINDOWS = 14
STATES = 40
"""Folders per recording; ``make chaos`` makes many more."""


def recorded(root: Path, failing: frozenset[int], monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk on which a run was written, with a sync after every third window."""
    root.mkdir()
    disk, now = Disk(root, failing=failing), [0.0]
    monkeypatch.setattr(files, "monotonic", lambda: now[0])
    monkeypatch.setattr("moetrace.store.array_writer.row_count", lambda entries: 4)
    with disk.watched():
        folder = RunFolder.prepare(root)
        segment = folder.open_segment(rank=0, header=HEADER)
        for seq in range(WINDOWS):
            now[0] += 4.0
            segment.append(window(seq, {"a": (seq, 1), "b": (seq, 2, 3)}, run_id=folder.run_id))
            if segment.unsynced == 0:
                disk.note_durable(seq + 1)
        segment.close()
        if segment.unsynced == 0:
            disk.note_durable(WINDOWS)
    return disk


def check_states(disk: Disk, root: Path, chance: random.Random, count: int) -> Iterator[int]:
    """Wake up with so many folders; how many snapshots each of them held."""
    written = {s.seq: s.to_dict() for s in open_run(root).snapshots()}
    assert len(written) == WINDOWS
    for number in range(count):
        state = root.parent / f"{root.name}-{number}"
        moment = chance.randint(1, disk.moment + 1)
        durable = disk.state(moment, chance, state)
        try:
            found = [snapshot.to_dict() for snapshot in open_run(state).snapshots()]
        except RunNotReadable:
            found = []
        numbers = [snapshot["seq"] for snapshot in found]
        where = f"moment {moment} of {disk.moment}, {durable} durable"
        assert len(set(numbers)) == len(numbers), f"counted twice: {numbers}, {where}"
        assert set(range(durable)) <= set(numbers), f"lost: {numbers}, {where}"
        assert all(written[snapshot["seq"]] == snapshot for snapshot in found), where
        shutil.rmtree(state)
        yield len(numbers)


class TestCrashStates:
    @pytest.mark.parametrize(
        "failing", [(), (3,), (4,), (5,), (6,), (5, 9), (4, 5), (7, 8, 9), (3, 12), (13,)]
    )
    def test_hold_what_was_synced_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[int, ...]
    ) -> None:
        """C5, C13, C14: whichever unsynced sectors and names a crash takes, and syncs fail."""
        disk = recorded(tmp_path / "run", frozenset(failing), monkeypatch)
        held = list(check_states(disk, tmp_path / "run", random.Random(repr(failing)), STATES))
        assert min(held) < WINDOWS <= max(held) + 3
        assert len(disk.durable) > 2

    @pytest.mark.parametrize("failing", [(5, 6, 15), (10, 13), (4, 7, 12)])
    def test_a_header_that_no_sync_covered_may_be_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[int, ...]
    ) -> None:
        """C5, C14: after two failed syncs the second replacement also says what the first said."""
        disk = recorded(tmp_path / "run", frozenset(failing), monkeypatch)
        list(check_states(disk, tmp_path / "run", random.Random(repr(failing)), 5 * STATES))

    def test_a_store_that_trusts_a_second_sync_is_found_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """C5: the model loses what a failed sync left behind, and the check sees that."""
        from moetrace.store.open_segment import OpenSegment
        from moetrace.store.segment_writer import SegmentWriter

        def trusting(self: SegmentWriter, segment: OpenSegment) -> None:
            try:
                self._sync(segment)
            except OSError:
                segment._unsyncable = None
                self._sync(segment)

        monkeypatch.setattr(SegmentWriter, "_sync_or_write_again", trusting)
        disk = recorded(tmp_path / "run", frozenset((5,)), monkeypatch)
        with pytest.raises(AssertionError, match="lost"):
            list(check_states(disk, tmp_path / "run", random.Random(3), 400))
